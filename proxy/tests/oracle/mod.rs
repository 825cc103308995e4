//! hyper reads the same bytes as the relay: what the relay accepts must be the same requests for hyper, as a client sent them
//! and as the application gets them.

use std::cell::RefCell;
use std::error::Error as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use hostmesh_proxy_core::http1::{Body, Framing, HeadScanner, MAX_FIELDS, RequestEdits, RequestHead};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};

/// Requests that both read, and requests that only hyper refused.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub requests: usize,
    pub stricter: usize,
}

/// Reads a connection's bytes both ways, and both ways again what is passed on; panics where that is not the same.
pub fn compare(bytes: &[u8]) -> Agreed {
    let (ours, passed, end) = relayed(bytes);
    let (theirs, error) = hypers(bytes);
    let agreed = Agreed {
        requests: ours.len().min(theirs.len()),
        stricter: ours.len().saturating_sub(theirs.len()),
    };
    for (one, other) in ours.iter().zip(&theirs) {
        one.check(other);
    }
    if theirs.len() < ours.len() {
        assert!(
            error.as_deref().is_some_and(is_stricter),
            "{}: refused by hyper only: {error:?}",
            bytes.escape_ascii()
        );
    }
    if end == End::Waits {
        assert!(
            theirs.len() <= ours.len(),
            "{}: a request that we wait for",
            bytes.escape_ascii()
        );
    }
    let (arrived, error) = hypers(&passed);
    assert!(
        arrived.len() == agreed.requests || (agreed.stricter > 0 && arrived.len() >= agreed.requests),
        "{}: {} requests were passed on, {} arrive: {error:?}",
        passed.escape_ascii(),
        ours.len(),
        arrived.len()
    );
    for (sent, got) in theirs.iter().zip(&arrived) {
        got.check_arrived(sent);
    }
    agreed
}

/// hyper's own limits, beyond which nothing is read in another way: it is not read at all.
fn is_stricter(error: &str) -> bool {
    ["invalid URI", "invalid HTTP method parsed"]
        .iter()
        .any(|reason| error.contains(reason))
}

/// Why there are no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The rest is not a whole request yet.
    Waits,
    Refused,
    /// The connection ends after the last request.
    Closes,
}

/// A request as the relay reads it.
struct Relayed {
    head: RequestHead,
    body: Vec<u8>,
}

/// The requests, the bytes that the application gets of them, and why there are no more.
fn relayed(mut bytes: &[u8]) -> (Vec<Relayed>, Vec<u8>, End) {
    let (mut requests, mut passed) = (Vec::new(), BytesMut::new());
    loop {
        let end = match HeadScanner::default().find(bytes) {
            Ok(Some(end)) => end,
            Ok(None) => return (requests, passed.into(), End::Waits),
            Err(_) => return (requests, passed.into(), End::Refused),
        };
        let Ok(head) = RequestHead::parse(Bytes::copy_from_slice(&bytes[..end])) else {
            return (requests, passed.into(), End::Refused);
        };
        let mut body = Body::new(head.framing);
        let Ok(taken) = body.feed(&bytes[end..]) else {
            return (requests, passed.into(), End::Refused);
        };
        if !body.is_done() {
            return (requests, passed.into(), End::Waits);
        }
        let (raw, rest) = bytes[end..].split_at(taken);
        head.write(&RequestEdits::default(), &mut passed);
        passed.extend_from_slice(raw);
        bytes = rest;
        let closes = !head.keep_alive;
        requests.push(Relayed {
            body: if head.framing == Framing::Chunked {
                unchunked(raw)
            } else {
                raw.to_vec()
            },
            head,
        });
        if closes {
            return (requests, passed.into(), End::Closes);
        }
    }
}

/// What the chunks of a sound body carry.
fn unchunked(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let digits = raw.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&raw[..digits]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return body;
        }
        let line = raw.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        body.extend_from_slice(&raw[line..line + size]);
        raw = &raw[line + size + 2..];
    }
}

impl Relayed {
    /// hyper sees the same, and rules see of each field what hyper sees.
    fn check(&self, theirs: &Message) {
        assert_eq!(
            (self.head.method(), self.head.target(), self.head.is_http11),
            (&*theirs.method, &*theirs.target, theirs.is_http11),
            "{theirs:?}"
        );
        assert_eq!(self.head.host().map(str::as_bytes), theirs.only("host"), "{theirs:?}");
        assert_eq!(self.body, theirs.body, "{theirs:?}");
        for (name, _) in &theirs.fields {
            let mut ours = Vec::new();
            self.head.headers().each(name, &mut |value| ours.push(value.to_vec()));
            ours.sort();
            assert_eq!(ours, theirs.like(name), "{name} of {theirs:?}");
        }
    }
}

/// A request as hyper reads it.
#[derive(Debug)]
struct Message {
    method: String,
    /// In origin form.
    target: String,
    is_http11: bool,
    /// Names in lower case.
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Message {
    fn only(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.fields.iter().filter(|field| field.0 == name);
        all.next().filter(|_| all.next().is_none()).map(|field| &*field.1)
    }

    /// The values of all fields that an application could take for this one.
    fn like(&self, name: &str) -> Vec<Vec<u8>> {
        let plain = |name: &str| name.replace('_', "-");
        let all = self.fields.iter().filter(|field| plain(&field.0) == plain(name));
        let mut values: Vec<_> = all.map(|field| field.1.clone()).collect();
        values.sort();
        values
    }

    /// This is what came of `sent` at the application: nothing was added but what says that an upgrade is asked for, and
    /// nothing left out but what is for one hop.
    fn check_arrived(&self, sent: &Self) {
        assert_eq!(
            (&self.method, &self.target, self.is_http11, &self.body),
            (&sent.method, &sent.target, sent.is_http11, &sent.body)
        );
        for field in &self.fields {
            let upgrade = field.0 == "connection" && field.1 == b"upgrade";
            assert!(
                upgrade || sent.fields.contains(field),
                "{field:?} was added to {sent:?}"
            );
        }
        for (name, value) in &sent.fields {
            let kept = self
                .fields
                .iter()
                .filter(|field| field.0 == *name && field.1 == *value)
                .count();
            let came = sent
                .fields
                .iter()
                .filter(|field| field.0 == *name && field.1 == *value)
                .count();
            assert!(kept == came || sent.is_for_one_hop(name), "{name} of {sent:?} was lost");
        }
    }

    fn is_for_one_hop(&self, name: &str) -> bool {
        let named = self.fields.iter().filter(|field| field.0 == "connection");
        let mut named = named.flat_map(|field| field.1.split(|byte| *byte == b','));
        let plain = name.replace('_', "-");
        [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "upgrade",
            "http2-settings",
        ]
        .contains(&name)
            || plain.starts_with("x-hostmesh-")
            || plain == "x-forwarded-client-cert"
            || named.any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// The requests that arrive whole at a service of hyper's, and why there are no more.
fn hypers(bytes: &[u8]) -> (Vec<Message>, Option<String>) {
    let messages = RefCell::new(Vec::new());
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        let text = |name: &hyper::header::HeaderName| name.as_str().to_owned();
        messages.borrow_mut().push(Message {
            method: head.method.to_string(),
            target: head
                .uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
            is_http11: head.version == hyper::Version::HTTP_11,
            fields: head
                .headers
                .iter()
                .map(|(name, value)| (text(name), value.as_bytes().to_vec()))
                .collect(),
            body,
        });
        Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
    });
    let connection = http1::Builder::new()
        .max_headers(MAX_FIELDS)
        .half_close(true)
        .header_read_timeout(None)
        .serve_connection(Script(bytes.to_vec().into()), service);
    let ended = at_once(connection);
    let error = ended.err().map(|error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    });
    (messages.into_inner(), error)
}

/// Runs what never has to wait: all bytes are there.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        if let Poll::Ready(done) = future.as_mut().poll(&mut cx) {
            return done;
        }
    }
    panic!("it waits for something");
}

/// A connection whose client has sent all of this and ended its side; answers are of no interest.
struct Script(Bytes);

impl Read for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let count = into.remaining().min(self.0.len());
        into.put_slice(&self.0[..count]);
        self.0.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl Write for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
