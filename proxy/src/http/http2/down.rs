//! A request that came as a stream of HTTP/2, and the way of its answer.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{Framing, RequestEdits, RequestHead};
use hostmesh_proxy_core::http2::Head;
use hostmesh_proxy_core::retry::Failure;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::body::Source;
use super::exchange::{Asked, Try};
use super::respond::Client;
use super::upload::{Replay, Upload};
use crate::http::down::{Answer, BrokenBy, Downstream, Ended, Manner, Progress, Up};
use crate::http::session::Next;
use crate::rejudge::Denial;
use crate::stream::DENIED;

/// One request and the place of its answer.
pub struct Http2<'a> {
    head: &'a Head,
    source: Source<'static>,
    replay: Replay,
    respond: SendResponse<Bytes>,
    progress: &'a Progress,
    /// Each piece of the answer must be taken within this.
    stall: Duration,
}

impl<'a> Http2<'a> {
    pub fn new(
        head: &'a Head,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        progress: &'a Progress,
        stall: Duration,
    ) -> Self {
        Self {
            head,
            source: Source::http2(body),
            replay: Replay::default(),
            respond,
            progress,
            stall,
        }
    }

    /// The request is over.
    pub fn end(mut self, next: &Next) {
        match next {
            Next::Keep | Next::Close => {}
            Next::Deny => self.respond.send_reset(DENIED),
            Next::Abort | Next::Tunnel(_) => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

impl Downstream for Http2<'_> {
    async fn exchange(
        &mut self,
        up: &mut Up,
        manner: &Manner<'_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        denied: Pin<&mut impl Future<Output = Denial>>,
    ) -> Ended {
        let upload = Upload {
            source: &mut self.source,
            replay: &mut self.replay,
            progress: self.progress,
            stall: None,
        };
        let client = Client::Http2 {
            respond: &mut self.respond,
            stall: self.stall,
        };
        let this = Try {
            asked: Asked::Http2(self.head),
            manner,
            progress: self.progress,
        };
        this.run(client, up, upload, again, denied).await
    }

    async fn reply(&mut self, fault: Fault, message: &str) -> Next {
        let is_head = self.head.method() == "HEAD";
        match refuse(&mut self.respond, fault, message, self.head.is_grpc(), is_head) {
            Ok(()) => Next::Keep,
            Err(_) => Next::Abort,
        }
    }

    async fn answer(&mut self, status: u16, fields: &[(&str, &str)], body: &str) -> Next {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let known = response.headers_mut();
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                known.append(name, value);
            }
        }
        match send(&mut self.respond, response, body, self.head.method() == "HEAD") {
            Ok(()) => Next::Keep,
            Err(_) => Next::Abort,
        }
    }

    fn is_whole(&self) -> bool {
        (self.replay.is_whole() || self.source.is_over()) && self.progress.is_replayable.get()
    }

    async fn gone(&mut self) -> BrokenBy {
        // However it ended.
        let _ended = poll_fn(|cx| self.respond.poll_reset(cx)).await;
        BrokenBy::Client
    }

    fn copy(&self, edits: &RequestEdits<'_>) -> Option<Bytes> {
        let body = self.is_whole().then_some(self.replay.sent())?;
        let request = self.head.to_http1(body.is_empty()).ok()?;
        Some(chunked(&request, edits, body))
    }
}

/// A request of HTTP/1.1 with its whole body, which came in frames.
pub fn chunked(request: &RequestHead, edits: &RequestEdits<'_>, body: &[u8]) -> Bytes {
    let size = format!("{:x}\r\n", body.len());
    match body {
        _ if request.framing != Framing::Chunked => request.with_body(edits, &[body]),
        [] => request.with_body(edits, &[b"0\r\n\r\n"]),
        _ => request.with_body(edits, &[size.as_bytes(), body, b"\r\n0\r\n\r\n"]),
    }
}

/// Answers in place of the application: to gRPC by a status of its own, since its clients see no other
/// (grpc/doc/http-grpc-status-mapping.md).
pub fn refuse(
    respond: &mut SendResponse<Bytes>,
    fault: Fault,
    message: &str,
    is_grpc: bool,
    is_head: bool,
) -> Result<(), h2::Error> {
    let body = format!("hostmesh: {message}\n");
    let mut response = Response::new(());
    let fields = response.headers_mut();
    fields.insert("x-hostmesh-error", HeaderValue::from_static(fault.word()));
    if let Some(Ok(challenge)) = fault.challenge().map(HeaderValue::try_from) {
        fields.insert(WWW_AUTHENTICATE, challenge);
    }
    if let Some(seconds) = fault.retry_after() {
        fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if is_grpc {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert("grpc-status", HeaderValue::from(fault.grpc_status()));
        if let Ok(text) = HeaderValue::from_str(body.trim_end()) {
            fields.insert("grpc-message", text);
        }
        respond.send_response(response, true)?;
        return Ok(());
    }
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    send(respond, response, &body, is_head)
}

/// `is_head`: the body is only told of. Of some statuses there is none (RFC 9110, sections 15.3.5 and 15.4.5).
fn send(
    respond: &mut SendResponse<Bytes>,
    mut response: Response<()>,
    body: &str,
    is_head: bool,
) -> Result<(), h2::Error> {
    let has_body = !matches!(response.status().as_u16(), 204 | 304);
    if has_body {
        let length = HeaderValue::from(body.len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    let is_empty = is_head || !has_body || body.is_empty();
    let mut send = respond.send_response(response, is_empty)?;
    if is_empty {
        return Ok(());
    }
    send.send_data(Bytes::copy_from_slice(body.as_bytes()), true)
}
