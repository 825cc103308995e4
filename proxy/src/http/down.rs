//! Where requests come from and their answers go, whatever is spoken there: what the loop of tries needs to know of it.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use hostmesh_proxy_core::authorize::{Decision, Request};
use hostmesh_proxy_core::config::Timeouts;
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::fields::FieldEdits;
use hostmesh_proxy_core::http1::{Body, Framing, RequestEdits, RequestHead, ResponseHead, answer, local_reply};
use hostmesh_proxy_core::retry::Failure;
use http::HeaderMap;
use tokio::time::{Instant, sleep, sleep_until};

use super::HALF_CLOSED;
use super::conn::Conn;
use super::exchange::{Exchange, Upload};
use super::http2::{self, Awaited, Link, Replay};
use super::session::Next;
use super::token::Brought;
use crate::rejudge::Denial;

/// How far a request has come, in all its tries.
#[derive(Debug)]
pub struct Progress {
    /// Bytes of heads that went out, and of the body that the client has sent.
    pub sent: Cell<u64>,
    /// Bytes of responses.
    pub received: Cell<u64>,
    /// All that went out of the body is still here.
    pub is_replayable: Cell<bool>,
    /// `grpc-status`, where the response had one.
    pub grpc_status: Cell<Option<u16>>,
}

impl Progress {
    /// Keeps the status of a gRPC call, which stands in the trailers, or in the head where there is no body.
    pub fn see_grpc(&self, fields: &HeaderMap) {
        let status = fields
            .get("grpc-status")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        self.grpc_status.set(status.or(self.grpc_status.get()));
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            sent: Cell::default(),
            received: Cell::default(),
            is_replayable: Cell::new(true),
            grpc_status: Cell::default(),
        }
    }
}

/// A request that has come.
#[derive(Clone, Copy)]
pub struct Arrived<'a> {
    pub asked: Request<'a>,
    /// Behind the question mark.
    pub query: &'a str,
    pub progress: &'a Progress,
    pub begun: Instant,
}

impl<'a> Arrived<'a> {
    /// The same, when its token was read.
    pub fn with<'b>(self, brought: &'b Brought) -> Arrived<'b>
    where
        'a: 'b,
    {
        let token = brought.token();
        let asked = Request { token, ..self.asked };
        Arrived { asked, ..self }
    }
}

/// Counts bytes.
pub fn add(count: &Cell<u64>, bytes: usize) {
    count.set(count.get() + bytes as u64);
}

/// How one try is to be made.
pub struct Manner<'a> {
    pub edits: RequestEdits<'a>,
    /// What is done to the response's fields.
    pub response: Option<&'a FieldEdits>,
    /// When there must be a response's head.
    pub deadline: Option<Instant>,
    /// The response comes from an application, not from another proxy.
    pub from_application: bool,
    pub timeouts: Timeouts,
    pub stretch: Stretch,
}

/// How much of a try is made at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// All of it.
    Whole,
    /// All of it, where something of the response comes by then; else the request alone.
    Request(Instant),
    /// The response alone: the request has gone out.
    Response,
}

impl Stretch {
    /// Waits until the request alone has been made: it `is_out`, and nothing came in time. To be polled behind what changes
    /// the answer of `is_out`.
    pub async fn over(self, is_out: impl Fn() -> bool) {
        let Self::Request(until) = self else {
            return pending().await;
        };
        sleep_until(until).await;
        poll_fn(|_| if is_out() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// The head of a response, whatever it was written in.
pub trait Answer {
    /// 100..=999.
    fn status(&self) -> u16;

    /// The only value of a field; `None` if it is missing or there are two.
    fn single(&self, name: &str) -> Option<&[u8]>;

    /// The status of a gRPC call that has nothing but a status.
    fn grpc_status(&self) -> Option<u32> {
        None
    }
}

/// How a try ended.
pub enum Ended {
    /// A response was passed on whole.
    Answered {
        status: u16,
        /// The upstream may serve another request.
        upstream_clean: bool,
        /// So may the client's connection.
        downstream_clean: bool,
    },
    /// 101 was passed on: both connections are a tunnel now.
    Upgraded,
    /// A response's head came that is to be tried again; nothing of it was passed on.
    Refused(Failure),
    /// The request has gone out, and nothing has come back in time ([`Stretch::Request`]).
    Waiting,
    /// No response; nothing was passed on.
    Failed(Fault),
    /// The same, and the upstream has not seen the request.
    Unseen,
    /// It was broken off. Status 0: before the response began.
    Broken { status: u16, by: BrokenBy },
    /// Policy has turned against it. Status 0: nothing was passed on.
    Denied { status: u16, denial: Denial },
}

/// Who broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenBy {
    Client,
    /// The client is there, and took nothing, or sent no more of its request, for too long.
    SlowClient,
    Upstream,
    /// The other side's policy.
    Policy,
}

impl BrokenBy {
    /// Whose doing it is that nothing more comes from the client.
    pub fn of_lost_client(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Policy,
            _ => Self::Client,
        }
    }

    /// Whose doing it is that the client takes nothing more.
    pub fn of_client(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::SlowClient,
            _ => Self::of_lost_client(error),
        }
    }

    /// Whose doing it is that nothing more comes from the upstream.
    pub fn of_upstream(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Policy,
            _ => Self::Upstream,
        }
    }
}

/// A connection to where a request goes.
pub enum Up {
    Http1(Conn),
    Http2(Link),
    /// The same, with a request on it that has gone out.
    Asked(Box<(Link, Awaited)>),
}

impl Up {
    /// It is used no more. With HTTP/2 the request's stream alone is broken off, and has been.
    pub fn abort(self) {
        if let Self::Http1(conn) = self {
            conn.abort();
        }
    }

    /// The same because policy denies it.
    pub fn deny(self) {
        if let Self::Http1(conn) = self {
            conn.deny();
        }
    }

    /// It is a tunnel from now on. Of HTTP/2's streams none becomes one.
    pub fn into_tunnel(self) -> Next {
        match self {
            Self::Http1(conn) => Next::Tunnel(conn),
            Self::Http2(_) | Self::Asked(_) => Next::Abort,
        }
    }

    /// Waits until something of the response has come, or its end, after the request has gone out.
    pub async fn heard(&mut self) {
        match self {
            Self::Http1(conn) => conn.split().0.wait().await,
            Self::Asked(asked) => asked.1.heard().await,
            Self::Http2(_) => {}
        }
    }
}

/// One request and the place of its answer.
pub trait Downstream {
    /// Makes one try by `up`, until it is `denied`. `again`: is a response of this head to be tried again?
    async fn exchange(
        &mut self,
        up: &mut Up,
        manner: &Manner<'_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        denied: Pin<&mut impl Future<Output = Denial>>,
    ) -> Ended;

    /// Answers in place of the application.
    async fn reply(&mut self, fault: Fault, message: &str) -> Next;

    /// Answers as policy says.
    async fn answer(&mut self, status: u16, fields: &[(&str, &str)], body: &str) -> Next;

    /// Is all of the request here, so that it can be sent again?
    fn is_whole(&self) -> bool;

    /// Waits until the client wants no answer any more.
    async fn gone(&mut self) -> BrokenBy;

    /// The request anew, with these edits, if all of it is still here.
    fn copy(&self, edits: &RequestEdits<'_>) -> Option<Bytes>;

    /// Ends a request that policy has turned against: by an answer as at its beginning, or, where the response has begun
    /// (its `status` is not 0), by breaking it off.
    async fn refuse(&mut self, decision: &Decision, status: u16) -> Next {
        match decision.verdict.fault() {
            Some(fault) if status == 0 => self.reply(fault, &fault.to_string()).await,
            _ => Next::Deny,
        }
    }
}

/// A request of HTTP/1.1 on its client's connection.
pub struct Http1<'a> {
    conn: &'a mut Conn,
    request: &'a RequestHead,
    upload: Upload<'a>,
    progress: &'a Progress,
    /// The connection ends after the response in any case.
    last: bool,
    /// The body as frames, once it goes to where HTTP/2 is spoken.
    framed: Option<Box<Framed>>,
}

struct Framed {
    body: Body,
    replay: Replay,
}

impl<'a> Http1<'a> {
    pub fn new(
        conn: &'a mut Conn,
        request: &'a RequestHead,
        progress: &'a Progress,
        timeouts: Timeouts,
        last: bool,
    ) -> Self {
        Self {
            upload: Upload::new(request, progress, timeouts.stall),
            conn,
            request,
            progress,
            last,
            framed: None,
        }
    }
}

impl Http1<'_> {
    /// A client that has a body under way loses its connection when it is answered early.
    fn closes(&self) -> bool {
        self.last || !self.request.keep_alive || self.request.framing != Framing::Empty
    }

    fn is_head(&self) -> bool {
        self.request.method() == "HEAD"
    }

    /// Sends an answer of the proxy's own.
    async fn send(&mut self, answer: Bytes) -> Next {
        match self.conn.send(answer).await {
            Err(_) => Next::Abort,
            Ok(()) if self.closes() => Next::Close,
            Ok(()) => Next::Keep,
        }
    }

    /// The same by meaning: the upstream speaks HTTP/2.
    async fn exchange_http2(
        &mut self,
        up: &mut Up,
        manner: &Manner<'_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        denied: Pin<&mut impl Future<Output = Denial>>,
    ) -> Ended {
        let framed = self.framed.get_or_insert_with(|| {
            Box::new(Framed {
                body: Body::new(self.request.framing),
                replay: Replay::default(),
            })
        });
        let (source, sink) = self.conn.split();
        let mut source = http2::Source::Http1 {
            source,
            body: &mut framed.body,
        };
        let upload = http2::Upload {
            source: &mut source,
            replay: &mut framed.replay,
            progress: self.progress,
            stall: Some(manner.timeouts.stall),
        };
        let client = http2::Client::Http1 {
            sink,
            request: self.request,
            last: self.last,
        };
        let this = http2::Try {
            asked: http2::Asked::Http1(self.request),
            manner,
            progress: self.progress,
        };
        this.run(client, up, upload, again, denied).await
    }
}

impl Downstream for Http1<'_> {
    async fn exchange(
        &mut self,
        up: &mut Up,
        manner: &Manner<'_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        denied: Pin<&mut impl Future<Output = Denial>>,
    ) -> Ended {
        match up {
            Up::Http1(up) => {
                let exchange = Exchange {
                    request: self.request,
                    manner,
                    last: self.last,
                    progress: self.progress,
                };
                pin!(exchange.run(self.conn, up, &mut self.upload, again, denied)).await
            }
            // Boxed: who has no HTTP/2 behind it needs no room for it.
            Up::Http2(_) | Up::Asked(_) => Box::pin(self.exchange_http2(up, manner, again, denied)).await,
        }
    }

    async fn reply(&mut self, fault: Fault, message: &str) -> Next {
        let (close, is_head) = (self.closes(), self.is_head());
        self.send(local_reply(fault, message, close, is_head)).await
    }

    async fn answer(&mut self, status: u16, fields: &[(&str, &str)], body: &str) -> Next {
        let (close, is_head) = (self.closes(), self.is_head());
        self.send(answer(status, fields.iter().copied(), body, close, is_head))
            .await
    }

    fn is_whole(&self) -> bool {
        let is_done = match &self.framed {
            Some(framed) => framed.body.is_done(),
            None => self.upload.is_done(),
        };
        is_done && self.progress.is_replayable.get()
    }

    async fn gone(&mut self) -> BrokenBy {
        let (mut source, _sink) = self.conn.split();
        match source.recv().await {
            Err(error) => return BrokenBy::of_lost_client(&error),
            Ok(None) => sleep(HALF_CLOSED).await,
            // The next request, come early.
            Ok(Some(bytes)) => {
                source.put_back(bytes);
                pending().await
            }
        }
        BrokenBy::Client
    }

    fn copy(&self, edits: &RequestEdits<'_>) -> Option<Bytes> {
        match &self.framed {
            _ if !self.is_whole() || self.request.upgrade => None,
            None => Some(self.request.with_body(edits, &[self.upload.sent()])),
            Some(framed) => Some(http2::chunked(self.request, edits, framed.replay.sent())),
        }
    }
}

impl Answer for ResponseHead {
    fn status(&self) -> u16 {
        self.status
    }

    fn single(&self, name: &str) -> Option<&[u8]> {
        self.single(name)
    }
}
