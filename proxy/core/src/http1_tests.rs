//! Heads: what is refused, what is framed how, what is rewritten.

use bytes::{Bytes, BytesMut};

use super::*;
use crate::error::Fault;
use crate::trace::{Formats, Incoming, Span};

pub(super) fn request(text: &str) -> Result<RequestHead, Refused> {
    RequestHead::parse(Bytes::copy_from_slice(text.as_bytes()))
}

/// A request with `Host` and these lines.
fn with(lines: &str) -> Result<RequestHead, Refused> {
    request(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n"))
}

pub(super) fn get() -> RequestHead {
    request("GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("a request")
}

fn response(text: &str, to: &RequestHead) -> Result<ResponseHead, Refused> {
    ResponseHead::parse(Bytes::copy_from_slice(text.as_bytes()), to)
}

pub(super) fn written(head: &RequestHead, edits: &RequestEdits<'_>) -> String {
    let mut out = BytesMut::new();
    head.write(edits, &mut out);
    String::from_utf8(out.to_vec()).expect("text")
}

#[test]
fn a_plain_request() {
    let head = request("GET /products/7?x=%2F HTTP/1.1\r\nHost: inventory\r\nAccept: */*\r\n\r\n").expect("a request");
    assert_eq!(
        (head.method(), head.target(), head.path()),
        ("GET", "/products/7?x=%2F", "/products/7")
    );
    assert_eq!((head.host(), head.framing), (Some("inventory"), Framing::Empty));
    assert!(head.keep_alive && !head.upgrade && !head.expects_continue());
    assert_eq!(head.single("accept"), Some(&b"*/*"[..]));
}

#[test]
fn smuggling_is_refused() {
    for (lines, refused) in [
        ("Content-Length: 1\r\nContent-Length: 1\r\n", Refused::ContentLength),
        ("Content-Length: 1, 1\r\n", Refused::ContentLength),
        ("Content-Length: +1\r\n", Refused::ContentLength),
        ("Content-Length: 0x1\r\n", Refused::ContentLength),
        ("Content-Length: \r\n", Refused::ContentLength),
        ("Content-Length: 99999999999999999999\r\n", Refused::ContentLength),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            Refused::BothLengths,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            Refused::BothLengths,
        ),
        ("Transfer-Encoding: gzip, chunked\r\n", Refused::TransferEncoding),
        ("Transfer-Encoding: chunked, identity\r\n", Refused::TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", Refused::TransferEncoding),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Refused::TransferEncoding,
        ),
        ("Transfer-Encoding: \x0bchunked\r\n", Refused::Syntax),
        ("Transfer-Encoding : chunked\r\n", Refused::Syntax),
        ("X: a\r\n b\r\n", Refused::Syntax),
        (" X: a\r\n", Refused::Syntax),
        ("X: a\rContent-Length: 5\r\n", Refused::Syntax),
        ("X: a\0b\r\n", Refused::Syntax),
        ("X y: a\r\n", Refused::Syntax),
        (": a\r\n", Refused::Syntax),
        ("Host: h\r\n", Refused::Host),
        ("Host: other\r\n", Refused::Host),
        ("Connection: close, Content-Length\r\n", Refused::Connection),
        ("Connection: host\r\n", Refused::Connection),
    ] {
        assert_eq!(with(lines).err(), Some(refused), "{lines:?}");
        assert!((400..=599).contains(&refused.status()));
    }
}

#[test]
fn start_lines_and_hosts() {
    for (text, refused) in [
        ("GET / HTTP/1.1\r\n\r\n", Refused::Host),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refused::Host),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused::Host),
        ("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", Refused::Host),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", Refused::Version),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Syntax),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Version),
        ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n", Refused::Syntax),
        ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Syntax),
        ("GET a HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Target),
        ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Target),
        ("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Target),
        ("GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Target),
        ("GET http://h?x HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Target),
        ("GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", Refused::Target),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", Refused::Connect),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            Refused::TransferEncoding,
        ),
    ] {
        assert_eq!(request(text).err(), Some(refused), "{text:?}");
    }
    let absolute = request("GET HTTP://H/a?b HTTP/1.1\r\nHost: h\r\n\r\n").expect("absolute form");
    assert_eq!((absolute.target(), absolute.path()), ("/a?b", "/a"));
    assert!(written(&absolute, &RequestEdits::default()).starts_with("GET /a?b HTTP/1.1\r\nHost: h\r\n"));
    assert!(request("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").is_ok());
    let old = request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("HTTP/1.0");
    assert!(!old.keep_alive && !old.is_http11);
    assert_eq!(written(&old, &RequestEdits::default()), "GET / HTTP/1.0\r\n\r\n");
}

#[test]
fn limits() {
    let many: String = (0..=MAX_FIELDS).map(|i| format!("x{i}: 1\r\n")).collect();
    assert_eq!(with(&many).err(), Some(Refused::TooManyFields));
    let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD));
    assert_eq!(HeadScanner::default().find(long.as_bytes()), Err(Refused::TooLarge));
    let and_bad = long + "\n\r\n";
    assert_eq!(HeadScanner::default().find(and_bad.as_bytes()), Err(Refused::TooLarge));
    assert_eq!(Refused::TooLarge.status(), 431);
}

#[test]
fn heads_are_rewritten() {
    let head = with(
        "Connection: x-secret, close\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nX-HostMesh-Peer: spiffe://evil\r\n\
         X-Forwarded-Client-Cert: By=evil\r\ntraceparent: old\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMA\r\nTransfer-Encoding: Chunked\r\nX-Keep: yes\r\n",
    )
    .expect("a request");
    assert!(!head.keep_alive);
    let span = Span::new(0xa, 0xb, true).expect("ids");
    let edits = RequestEdits {
        trace: Some(Incoming::default().outgoing(span, None, Formats::W3C)),
        peer: Some("spiffe://mesh.local/unit/orders"),
        ..RequestEdits::default()
    };
    assert_eq!(
        written(&head, &edits),
        "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nX-Keep: yes\r\n\
         traceparent: 00-0000000000000000000000000000000a-000000000000000b-01\r\n\
         x-hostmesh-peer: spiffe://mesh.local/unit/orders\r\n\r\n"
    );
    let alone = RequestEdits {
        alone: true,
        ..RequestEdits::default()
    };
    let head = with("Expect: 100-continue\r\nContent-Length: 1\r\n").expect("a request");
    assert_eq!(
        written(&head, &alone),
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nconnection: close\r\n\r\n"
    );
    let head = with("traceparent: kept\r\n").expect("a request");
    assert!(written(&head, &RequestEdits::default()).contains("traceparent: kept\r\n"));
}

#[test]
fn names_that_an_application_takes_for_one() {
    let head = with(
        "X_Hostmesh_Peer: a\r\nx-hostmesh_peer: b\r\nX_Forwarded_Client-Cert: c\r\nX_Tenant: red\r\nx-tenant: blue\r\n",
    );
    let head = head.expect("a request");
    let out = written(&head, &RequestEdits::default()).to_ascii_lowercase();
    assert!(!out.contains("peer") && !out.contains("cert"), "{out}");
    let mut seen = Vec::new();
    head.headers().each("x-tenant", &mut |value| seen.push(value.to_vec()));
    assert_eq!(
        seen,
        [b"red".to_vec(), b"blue".to_vec()],
        "two lines of one name to a rule"
    );
}

#[test]
fn upgrades() {
    let head = with("Connection: Upgrade\r\nUpgrade: websocket\r\n").expect("a request");
    assert!(head.upgrade);
    assert!(written(&head, &RequestEdits::default()).ends_with("Upgrade: websocket\r\nconnection: upgrade\r\n\r\n"));
    let switched = response(
        "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        &head,
    )
    .expect("101");
    assert!(!switched.is_interim());
    let to_http = "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(
        response(to_http, &head).err(),
        Some(Refused::Upgrade),
        "not what was asked for"
    );
    for lines in [
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
    ] {
        let head = with(lines).expect("a request");
        assert!(!head.upgrade, "{lines}");
        let out = written(&head, &RequestEdits::default()).to_ascii_lowercase();
        assert!(!out.contains("upgrade"), "{out}");
        let switched = response("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", &head);
        assert_eq!(switched.err(), Some(Refused::Upgrade));
    }
}

#[test]
fn responses_are_framed() {
    let get = get();
    let head = request("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").expect("a request");
    let old = request("GET / HTTP/1.0\r\n\r\n").expect("a request");
    for (text, to, framing, keep_alive) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            &get,
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            &get,
            Framing::Empty,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            &head,
            Framing::Empty,
            true,
        ),
        (
            "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n",
            &get,
            Framing::Chunked,
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", &get, Framing::UntilClose, false),
        ("HTTP/1.1 204 No\r\n\r\n", &get, Framing::Empty, true),
        (
            "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n",
            &get,
            Framing::Empty,
            true,
        ),
        ("HTTP/1.1 100 Go\r\n\r\n", &get, Framing::Empty, true),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
            &get,
            Framing::Length(5),
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
            &get,
            Framing::Length(5),
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
            &get,
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            &old,
            Framing::Length(5),
            true,
        ),
    ] {
        let found = response(text, to).expect(text);
        assert_eq!((found.framing, found.keep_alive), (framing, keep_alive), "{text:?}");
    }
    for (text, to) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            &get,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            &get,
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &old),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &get),
        ("HTTP/1.1 101 OK\r\n\r\n", &get),
        ("HTTP/1.1 20 OK\r\n\r\n", &get),
        ("HTTP/1.1 099 OK\r\n\r\n", &get),
        ("ICY 200 OK\r\n\r\n", &get),
    ] {
        assert!(response(text, to).is_err(), "{text:?}");
    }
}

#[test]
fn responses_are_rewritten() {
    let head = response(
        "HTTP/1.1 200 Fine Thing\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nx-hostmesh-error: fake\r\nA: b\r\n\
         Content-Length: 0\r\n\r\n",
        &get(),
    )
    .expect("a response");
    let write = |edits: &ResponseEdits| {
        let mut out = BytesMut::new();
        head.write(edits, &mut out);
        String::from_utf8(out.to_vec()).expect("text")
    };
    let from_application = ResponseEdits {
        from_application: true,
        close: true,
        fields: None,
    };
    assert_eq!(
        write(&from_application),
        "HTTP/1.1 200 Fine Thing\r\nA: b\r\nContent-Length: 0\r\nconnection: close\r\n\r\n"
    );
    assert!(write(&ResponseEdits::default()).contains("x-hostmesh-error: fake\r\n"));
    let reply = local_reply(Fault::NoEndpoint, "nobody there", true, false);
    let parsed = ResponseHead::parse(reply.slice(..reply.len() - 23), &get()).expect("our own reply");
    assert_eq!(
        (parsed.status, parsed.framing, parsed.keep_alive),
        (503, Framing::Length(23), false)
    );
    assert_eq!(parsed.single("x-hostmesh-error"), Some(&b"no-endpoint"[..]));
}
