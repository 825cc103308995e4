//! Connections of HTTP/2 to applications and to other proxies: made when first needed, shared by the requests of one
//! downstream connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use tokio::sync::Mutex;

use super::body::{Frame, Lost, Sink, Source};
use super::exchange::size;
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW, STREAMS};
use crate::http::down::{Progress, add};
use crate::stream::{Stream, broken};
use crate::wire;

/// Streams before the other side's SETTINGS are known.
const FIRST_STREAMS: usize = 1024;

/// A connection that takes requests. It ends once its last holder is gone and its streams have ended.
#[derive(Clone)]
pub struct Link {
    requests: SendRequest<Bytes>,
    /// The wire under it, if it goes to another host.
    wire: Option<Rc<wire::Link>>,
    /// Holders: this list's own, and one each request under way.
    held: Rc<()>,
}

impl Link {
    /// Begins HTTP/2 on a new stream. The other side need not have said anything.
    async fn begin(stream: Stream) -> io::Result<Self> {
        let wire = match &stream {
            Stream::Wire(wire) => Some(wire.link()),
            Stream::Tcp(_) => None,
        };
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(FIRST_STREAMS)
            .max_concurrent_streams(STREAMS)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(hostmesh_proxy_core::http1::MAX_HEAD).unwrap_or(u32::MAX))
            .handshake(stream);
        let (requests, connection) = handshake.await.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            // Its streams tell how it ended.
            let _ended = connection.await;
        });
        Ok(Self {
            requests,
            wire,
            held: Rc::new(()),
        })
    }

    /// Sends a request's head, once there is room for one. `is_empty`: there is no body.
    pub(super) async fn send(
        &self,
        request: Request<()>,
        is_empty: bool,
    ) -> Result<(ResponseFuture, Sink<'static>), h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let (response, send) = requests.send_request(request, is_empty)?;
        let (stall, ended) = (None, is_empty);
        Ok((response, Sink::Http2 { send, stall, ended }))
    }

    /// Does it take new requests?
    fn is_open(&self) -> bool {
        let is_retired = self.wire.as_ref().is_some_and(|wire| wire.is_retired());
        let ready = self
            .requests
            .clone()
            .poll_ready(&mut Context::from_waker(Waker::noop()));
        !is_retired && !matches!(ready, Poll::Ready(Err(_)))
    }

    /// Does it take one more now?
    fn has_room(&self) -> bool {
        Rc::strong_count(&self.held) <= self.requests.current_max_send_streams()
    }
}

/// Sends a request whose body is all here, on a connection of its own, and throws away what is answered: the status, once
/// that has come to its end.
pub async fn ask(stream: Stream, request: Request<()>, body: Bytes, progress: &Progress) -> io::Result<u16> {
    let link = Link::begin(stream).await?;
    let (response, mut sink) = link.send(request, body.is_empty()).await.map_err(broken)?;
    let upload = async {
        match body.is_empty() {
            true => Ok(()),
            false => {
                sink.send(Frame::Data {
                    bytes: body,
                    is_last: true,
                })
                .await
            }
        }
    };
    let mut answered = pin!(async {
        let (head, receive) = response.await.map_err(broken)?.into_parts();
        progress.see_grpc(&head.headers);
        add(&progress.received, size(&head.headers));
        let mut source = Source::http2(receive);
        while let Some(frame) = source.frame().await.map_err(Lost::into_io)? {
            match frame {
                Frame::Data { bytes, .. } => add(&progress.received, bytes.len()),
                Frame::Trailers(fields) => progress.see_grpc(&fields),
            }
        }
        Ok(head.status.as_u16())
    });
    tokio::select! {
        status = &mut answered => status,
        // However it went: who takes no more of it may have answered.
        _ = upload => answered.await,
    }
}

/// The connections of one downstream connection, by where they lead.
pub struct Links<K>(RefCell<HashMap<K, Rc<Mutex<Vec<Link>>>>>);

impl<K> Default for Links<K> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash> Links<K> {
    /// A connection to there, and whether it has served others. `fresh`: not one that has. All who come while one is
    /// made wait for it.
    pub async fn get<E: From<io::Error>>(
        &self,
        to: K,
        fresh: bool,
        connect: impl Future<Output = Result<Stream, E>>,
    ) -> Result<(Link, bool), E> {
        let links = self.0.borrow_mut().entry(to).or_default().clone();
        let mut links = links.lock().await;
        links.retain(Link::is_open);
        if let Some(link) = links.iter().find(|link| link.has_room() && !fresh) {
            return Ok((link.clone(), true));
        }
        let link = Link::begin(connect.await?).await?;
        links.push(link.clone());
        Ok((link, false))
    }

    /// Takes no more requests by those of before.
    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}
