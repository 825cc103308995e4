//! Bodies as frames, whatever they are written in: where they come from, and where they go.

use std::future::{pending, poll_fn};
use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use hostmesh_proxy_core::http1::{Body, BodyError};
use hostmesh_proxy_core::http2::{last_chunk, strip_trailers, trailers_of};
use http::HeaderMap;
use tokio::time::timeout;

use crate::http::COALESCE;
use crate::http::conn;
use crate::stream::broken;

/// A part of a body.
pub enum Frame {
    /// `is_last`: nothing follows, that much is known.
    Data { bytes: Bytes, is_last: bool },
    /// The end.
    Trailers(HeaderMap),
}

/// Why no frame came.
#[derive(Debug)]
pub enum Lost {
    /// What came cannot be read, or ended early.
    Body(BodyError),
    Io(io::Error),
}

impl From<BodyError> for Lost {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Lost {
    /// As the connection's own failure.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Body(error) => io::Error::new(io::ErrorKind::InvalidData, error),
            Self::Io(error) => error,
        }
    }
}

/// Where a body comes from.
pub enum Source<'a> {
    Http2 {
        receive: RecvStream,
        /// Received bytes whose window the sender gets back when they have been passed on.
        owed: usize,
    },
    Http1 {
        source: conn::Source<'a>,
        /// How far it has come; the caller's, who may ask for the rest another time.
        body: &'a mut Body,
    },
}

impl Source<'_> {
    pub fn http2(receive: RecvStream) -> Self {
        Self::Http2 { receive, owed: 0 }
    }

    /// Is it known that nothing comes (any more)?
    pub fn is_over(&self) -> bool {
        match self {
            Self::Http2 { receive, .. } => receive.is_end_stream(),
            Self::Http1 { body, .. } => body.is_done(),
        }
    }

    /// The next frame; `None` at the end. By asking, the caller says that it is done with those before.
    pub async fn frame(&mut self) -> Result<Option<Frame>, Lost> {
        match self {
            Self::Http2 { receive, owed } => {
                // An error says that the stream is closed: then nobody waits for window.
                let _closed = receive.flow_control().release_capacity(std::mem::take(owed));
                if let Some(data) = receive.data().await {
                    let bytes = data.map_err(broken)?;
                    *owed = bytes.len();
                    let is_last = receive.is_end_stream();
                    return Ok(Some(Frame::Data { bytes, is_last }));
                }
                let trailers = receive.trailers().await.map_err(broken)?;
                Ok(trailers.map(|mut fields| {
                    strip_trailers(&mut fields);
                    Frame::Trailers(fields)
                }))
            }
            Self::Http1 { source, body } => {
                while !body.is_done() {
                    let Some(mut bytes) = source.recv().await? else {
                        body.end()?;
                        return Ok(None);
                    };
                    let data = body.data(&mut bytes)?;
                    if !bytes.is_empty() {
                        source.put_back(bytes);
                    }
                    if let Some(bytes) = data {
                        let is_last = body.is_done() && body.trailers().is_none();
                        return Ok(Some(Frame::Data { bytes, is_last }));
                    }
                }
                let trailers = body.trailers().map(trailers_of).transpose()?;
                **body = Body::new(hostmesh_proxy_core::http1::Framing::Empty);
                Ok(trailers.map(Frame::Trailers))
            }
        }
    }

    /// Waits until a client of HTTP/1.1 whose request is whole ends its side (`true`) or goes. Of HTTP/2 its stream tells.
    pub async fn left(&mut self) -> io::Result<()> {
        if let Self::Http1 { source, .. } = self {
            match source.recv().await? {
                None => return Ok(()),
                // The next request, come early.
                Some(bytes) => source.put_back(bytes),
            }
        }
        pending().await
    }
}

/// Where a body goes.
pub enum Sink<'a> {
    Http2 {
        send: SendStream<Bytes>,
        /// Each piece must be taken within this.
        stall: Option<Duration>,
        ended: bool,
    },
    Http1 {
        sink: conn::Sink<'a>,
        /// Else its length is known, or it ends with its connection.
        chunked: bool,
        ended: bool,
    },
}

impl Sink<'_> {
    /// Sends all of it; waits while the other side does not take it.
    pub async fn send(&mut self, frame: Frame) -> io::Result<()> {
        match (frame, self) {
            (Frame::Data { bytes, is_last }, Self::Http2 { send, stall, ended }) => {
                *ended |= is_last;
                let sent = push(send, bytes, is_last);
                match *stall {
                    Some(stall) => timeout(stall, sent)
                        .await
                        .unwrap_or(Err(io::ErrorKind::TimedOut.into())),
                    None => sent.await,
                }
            }
            (Frame::Trailers(fields), Self::Http2 { send, ended, .. }) => {
                *ended = true;
                send.send_trailers(fields).map_err(broken)
            }
            (
                Frame::Data { bytes, is_last },
                Self::Http1 {
                    sink,
                    chunked: true,
                    ended,
                },
            ) => {
                *ended |= is_last;
                send_chunk(sink, bytes, is_last).await
            }
            (Frame::Data { bytes, .. }, Self::Http1 { sink, .. }) => match bytes.is_empty() {
                true => Ok(()),
                false => sink.send(bytes).await,
            },
            (
                Frame::Trailers(fields),
                Self::Http1 {
                    sink,
                    chunked: true,
                    ended,
                },
            ) => {
                *ended = true;
                sink.send(last_chunk(&fields)).await
            }
            (Frame::Trailers(_), Self::Http1 { .. }) => Ok(()),
        }
    }

    /// Says the end, if that was not said.
    pub async fn finish(&mut self) -> io::Result<()> {
        let (Self::Http2 { ended, .. } | Self::Http1 { ended, .. }) = self;
        if std::mem::replace(ended, true) {
            return Ok(());
        }
        match self {
            Self::Http2 { send, .. } => send.send_data(Bytes::new(), true).map_err(broken),
            Self::Http1 {
                sink, chunked: true, ..
            } => sink.send(last_chunk(&HeaderMap::new())).await,
            Self::Http1 { .. } => Ok(()),
        }
    }

    /// Waits until the other side of HTTP/2 wants nothing more. Of HTTP/1.1 its own direction tells.
    pub async fn refused(&mut self) -> io::Error {
        match self {
            Self::Http2 { send, .. } => match poll_fn(|cx| send.poll_reset(cx)).await {
                Ok(reason) => broken(reason.into()),
                Err(error) => broken(error),
            },
            Self::Http1 { .. } => pending().await,
        }
    }
}

async fn push(send: &mut SendStream<Bytes>, mut bytes: Bytes, is_last: bool) -> io::Result<()> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = match send.capacity() {
            0 => match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(room) => room.map_err(broken)?,
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            },
            room => room,
        };
        let part = bytes.split_to(room.min(bytes.len()));
        let is_end = is_last && bytes.is_empty();
        send.send_data(part, is_end).map_err(broken)?;
        if is_end {
            return Ok(());
        }
    }
    if is_last {
        send.send_data(bytes, true).map_err(broken)?;
    }
    Ok(())
}

async fn send_chunk(sink: &mut conn::Sink<'_>, bytes: Bytes, is_last: bool) -> io::Result<()> {
    let mut out = BytesMut::new();
    if !bytes.is_empty() {
        out.put_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        if bytes.len() <= COALESCE {
            out.put_slice(&bytes);
        } else {
            sink.send(out.split().freeze()).await?;
            sink.send(bytes).await?;
        }
        out.put_slice(b"\r\n");
    }
    if is_last {
        out.put_slice(b"0\r\n\r\n");
    }
    match out.is_empty() {
        true => Ok(()),
        false => sink.send(out.freeze()).await,
    }
}
