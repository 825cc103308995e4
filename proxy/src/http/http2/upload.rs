//! A request's body on its way, and what of it another try needs.

use std::cell::Cell;
use std::future::pending;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::error::Fault;
use http::HeaderMap;
use tokio::time::timeout;

use super::body::{Frame, Lost, Sink, Source};
use crate::http::REPLAY;
use crate::http::down::{BrokenBy, Progress, add};

/// What went out of a request's body already, as long as that is little.
#[derive(Default)]
pub struct Replay {
    sent: BytesMut,
    length: usize,
    is_whole: bool,
    trailers: Option<HeaderMap>,
}

/// A request's body on its way.
pub struct Upload<'a, 's> {
    pub source: &'a mut Source<'s>,
    pub replay: &'a mut Replay,
    pub progress: &'a Progress,
    /// More of it must come within this. A client of HTTP/2 may be silent: its streams go both ways for as long as they like.
    pub stall: Option<Duration>,
}

/// Why it goes no further.
pub enum Stopped {
    Downstream(BrokenBy),
    /// A client of HTTP/1.1 has ended its side after its request.
    HalfClosed,
    Failed(Fault),
    /// The upstream takes no more; what it answered may be there all the same.
    Upstream,
}

impl Replay {
    /// What has come of the body and is still here.
    pub fn sent(&self) -> &[u8] {
        &self.sent
    }

    /// Has it come to its end?
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }
}

impl Upload<'_, '_> {
    /// Is there no body at all, or no more?
    fn is_over(&self) -> bool {
        self.replay.is_whole || self.source.is_over()
    }

    /// Is there nothing to send at all?
    pub fn is_empty(&self) -> bool {
        self.is_over() && self.replay.sent.is_empty() && self.replay.trailers.is_none()
    }

    fn keep(&mut self, frame: &Frame) {
        let replay = &mut *self.replay;
        match frame {
            Frame::Data { bytes, is_last } => {
                replay.is_whole |= is_last;
                replay.length += bytes.len();
                add(&self.progress.sent, bytes.len());
                if replay.length > REPLAY {
                    self.progress.is_replayable.set(false);
                    replay.sent = BytesMut::new();
                } else {
                    replay.sent.extend_from_slice(bytes);
                }
            }
            Frame::Trailers(fields) => {
                replay.is_whole = true;
                replay.trailers = Some(fields.clone());
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Frame>, Stopped> {
        let next = self.source.frame();
        let next = match self.stall {
            Some(stall) => timeout(stall, next)
                .await
                .map_err(|_| Stopped::Failed(Fault::SlowRequest))?,
            None => next.await,
        };
        next.map_err(|lost| match lost {
            Lost::Body(error) => Stopped::Failed(Fault::BadRequestBody(error)),
            Lost::Io(error) => Stopped::Downstream(BrokenBy::of_lost_client(&error)),
        })
    }

    /// Sends what an earlier try had sent, then the rest as it comes.
    async fn run(&mut self, sink: &mut Sink<'_>) -> Result<(), Stopped> {
        let again = self.replay.sent.clone().freeze();
        if !again.is_empty() {
            let is_last = self.replay.is_whole && self.replay.trailers.is_none();
            sink.send(Frame::Data { bytes: again, is_last })
                .await
                .map_err(|_| Stopped::Upstream)?;
        }
        if let Some(trailers) = self.replay.trailers.clone() {
            sink.send(Frame::Trailers(trailers))
                .await
                .map_err(|_| Stopped::Upstream)?;
        }
        while !self.replay.is_whole {
            match self.frame().await? {
                Some(frame) => {
                    self.keep(&frame);
                    sink.send(frame).await.map_err(|_| Stopped::Upstream)?;
                }
                None => self.replay.is_whole = true,
            }
        }
        sink.finish().await.map_err(|_| Stopped::Upstream)
    }

    /// The same behind a head, if there is anything to send, and then sees whether the client is still there. Ends with a
    /// reason to stop, else never.
    pub async fn run_and_watch(
        &mut self,
        mut outgoing: Option<&mut (Sink<'_>, Bytes)>,
        uploaded: &Cell<Option<bool>>,
    ) -> Stopped {
        let begun = match &mut outgoing {
            Some((Sink::Http1 { sink, .. }, head)) => sink.send(std::mem::take(head)).await,
            _ => Ok(()),
        };
        let ran = match (begun, outgoing) {
            (Ok(()), Some((sink, _))) => self.run(sink).await,
            (Ok(()), None) => Ok(()),
            (Err(_), _) => Err(Stopped::Upstream),
        };
        match ran {
            Err(Stopped::Upstream) => uploaded.set(Some(false)),
            Err(stopped) => return stopped,
            Ok(()) => {
                uploaded.set(Some(true));
                return match self.source.left().await {
                    Ok(()) => Stopped::HalfClosed,
                    Err(error) => Stopped::Downstream(BrokenBy::of_lost_client(&error)),
                };
            }
        }
        pending().await
    }
}
