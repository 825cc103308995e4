//! Serves a client's connection of HTTP/2: every stream a request, all at the same time.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hostmesh_proxy_core::authorize;
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{MAX_HEAD, Refused};
use hostmesh_proxy_core::http2::Head;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::down::{self, Http2};
use super::io::Early;
use super::{CONNECTION_WINDOW, RESET_STREAMS, SEND_BUFFER, STREAM_WINDOW, STREAMS};
use crate::http::conn::Conn;
use crate::http::down::{Arrived, Progress};
use crate::http::session::Handler;
use crate::stream::Stream;
use crate::wire::Link;

/// Requests of one connection that are under way.
#[derive(Default)]
struct Open {
    count: Cell<usize>,
    none: Notify,
}

struct Held(Rc<Open>);

impl Held {
    fn new(open: &Rc<Open>) -> Self {
        open.count.set(open.count.get() + 1);
        Self(open.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.none.notify_one();
        }
    }
}

/// Serves the connection to its end, or, when the process drains, another has taken over or the wire under it is retired,
/// to the end of its requests. A client that says nothing for as long as one may is sent away.
pub async fn serve<H: Handler + 'static>(down: Conn, mut draining: watch::Receiver<bool>, handler: Rc<H>) {
    let (stream, bytes) = down.into_parts();
    let wire = match &stream {
        Stream::Wire(wire) => Some(wire.link()),
        Stream::Tcp(_) => None,
    };
    let mut retired = handler.retired();
    let told = async move {
        tokio::select! {
            _ = draining.wait_for(|draining| *draining) => {}
            _ = retired.wait_for(|retired| *retired) => {}
        }
    };
    serve_over(Early::new((stream, bytes)), wire, told, handler).await;
}

/// The same over anything that carries bytes; `wire`: the connection under it, where there is one; `told`: no more is taken.
pub async fn serve_over<H: Handler + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    wire: Option<Rc<Link>>,
    told: impl Future<Output = ()>,
    handler: Rc<H>,
) {
    let timeouts = handler.timeouts();
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .handshake::<_, Bytes>(io);
    let mut connection = match timeout(timeouts.head, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) => return,
        Err(_) => return handler.unreadable(Fault::SlowRequest),
    };
    let open = Rc::<Open>::default();
    let mut quiet = pin!(sleep(timeouts.idle));
    let mut told = pin!(told);
    let mut is_ending = false;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = poll_fn(|cx| {
                if let Some(wire) = &wire && !is_ending && wire.poll_retired(cx).is_ready() {
                    is_ending = true;
                    connection.graceful_shutdown();
                }
                connection.poll_accept(cx)
            }) => accepted,
            () = &mut told, if !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
                continue;
            }
            () = open.none.notified() => {
                quiet.as_mut().reset(Instant::now() + timeouts.idle);
                continue;
            }
            () = &mut quiet, if open.count.get() == 0 && !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else {
            // Its streams, if any are left, tell how it ended.
            return;
        };
        let (handler, held) = (handler.clone(), Held::new(&open));
        tokio::task::spawn_local(async move {
            carry(&*handler, request, respond).await;
            drop(held);
        });
    }
}

async fn carry(handler: &impl Handler, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let head = match Head::check(parts) {
        Ok(head) => head,
        Err(refused) => return refuse(handler, &mut respond, refused),
    };
    let (progress, stall) = (Progress::default(), handler.timeouts().stall);
    let mut down = Http2::new(&head, body, respond, &progress, stall);
    let asked = authorize::Request {
        method: head.method(),
        path: head.path(),
        headers: head.headers(),
        token: authorize::Token::None,
    };
    let arrived = Arrived {
        asked,
        query: head.query(),
        progress: &progress,
        begun: Instant::now(),
    };
    let next = handler.request(&mut down, arrived).await;
    down.end(&next);
}

fn refuse(handler: &impl Handler, respond: &mut SendResponse<Bytes>, refused: Refused) {
    let fault = Fault::BadRequest(refused);
    handler.unreadable(fault);
    // Who does not take the answer has gone.
    let _gone = down::refuse(respond, fault, &fault.to_string(), false, false);
}
