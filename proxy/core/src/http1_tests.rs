use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;

fn request(text: &str) -> Result<RequestHead, Refused> {
    RequestHead::parse(Bytes::copy_from_slice(text.as_bytes()))
}

/// A request with `Host` and these lines.
fn with(lines: &str) -> Result<RequestHead, Refused> {
    request(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n"))
}

fn get() -> RequestHead {
    request("GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("a request")
}

fn response(text: &str, to: &RequestHead) -> Result<ResponseHead, Refused> {
    ResponseHead::parse(Bytes::copy_from_slice(text.as_bytes()), to)
}

fn written(head: &RequestHead, edits: &RequestEdits<'_>) -> String {
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
    let edits = RequestEdits {
        traceparent: Some("new"),
        peer: Some("spiffe://mesh.local/unit/orders"),
    };
    assert_eq!(
        written(&head, &edits),
        "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nX-Keep: yes\r\ntraceparent: new\r\n\
         x-hostmesh-peer: spiffe://mesh.local/unit/orders\r\n\r\n"
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
    };
    assert_eq!(
        write(&from_application),
        "HTTP/1.1 200 Fine Thing\r\nA: b\r\nContent-Length: 0\r\nconnection: close\r\n\r\n"
    );
    assert!(write(&ResponseEdits::default()).contains("x-hostmesh-error: fake\r\n"));
    let reply = local_reply(503, "no-endpoint", "nobody there", true, false);
    let parsed = ResponseHead::parse(reply.slice(..reply.len() - 23), &get()).expect("our own reply");
    assert_eq!(
        (parsed.status, parsed.framing, parsed.keep_alive),
        (503, Framing::Length(23), false)
    );
    assert_eq!(parsed.single("x-hostmesh-error"), Some(&b"no-endpoint"[..]));
}

/// Feeds a body in pieces; gives the bytes taken and whether it is over.
fn feed(framing: Framing, pieces: &[&[u8]]) -> Result<(usize, bool), BodyError> {
    let mut body = Body::new(framing);
    let mut taken = 0;
    for piece in pieces {
        taken += body.feed(piece)?;
    }
    Ok((taken, body.is_done()))
}

#[test]
fn bodies() {
    for (framing, bytes, expect) in [
        (Framing::Empty, "GET", Ok((0, true))),
        (Framing::Length(3), "abcGET", Ok((3, true))),
        (Framing::Length(3), "ab", Ok((2, false))),
        (Framing::UntilClose, "anything", Ok((8, false))),
        (Framing::Chunked, "3\r\nabc\r\n0\r\n\r\nGET", Ok((13, true))),
        (
            Framing::Chunked,
            "A;x=\"y z\"\r\n0123456789\r\n00\r\n\r\n",
            Ok((29, true)),
        ),
        (Framing::Chunked, "0\r\nX-Sum: 1\r\n\r\nGET", Ok((15, true))),
        (Framing::Chunked, "3\r\nabc\r\n0\r\n\r", Ok((12, false))),
        (Framing::Chunked, "3\nabc", Err(BodyError::Chunk)),
        (Framing::Chunked, "3 \r\nabc", Err(BodyError::Chunk)),
        (Framing::Chunked, "\r\n", Err(BodyError::Chunk)),
        (Framing::Chunked, ";x\r\n", Err(BodyError::Chunk)),
        (Framing::Chunked, "-1\r\n", Err(BodyError::Chunk)),
        (Framing::Chunked, "0x3\r\nabc", Err(BodyError::Chunk)),
        (Framing::Chunked, "3\r\nabcd", Err(BodyError::Chunk)),
        (Framing::Chunked, "3;a\rb\r\n", Err(BodyError::Chunk)),
        (Framing::Chunked, "3;a\nb\r\n", Err(BodyError::Chunk)),
        (Framing::Chunked, "1000000000000000\r\n", Err(BodyError::Chunk)),
        (
            Framing::Chunked,
            "0\r\nContent-Length: 5\r\n\r\n",
            Err(BodyError::Trailer),
        ),
        (
            Framing::Chunked,
            "0\r\nX-Hostmesh-Peer: me\r\n\r\n",
            Err(BodyError::Trailer),
        ),
        (Framing::Chunked, "0\r\nX: 1\n\r\n", Err(BodyError::Trailer)),
        (Framing::Chunked, "0\r\n\n", Err(BodyError::Trailer)),
        (Framing::Chunked, "0\r\n no name\r\n\r\n", Err(BodyError::Trailer)),
    ] {
        assert_eq!(feed(framing, &[bytes.as_bytes()]), expect, "{framing:?} {bytes:?}");
    }
    assert_eq!(Body::new(Framing::Length(1)).end(), Err(BodyError::Truncated));
    assert_eq!(Body::new(Framing::Chunked).end(), Err(BodyError::Truncated));
    assert_eq!(Body::new(Framing::UntilClose).end(), Ok(()));
    let endless = "a".repeat(9000);
    assert_eq!(
        feed(Framing::Chunked, &[b"0\r\nX: ", endless.as_bytes()]),
        Err(BodyError::Trailer)
    );
    assert_eq!(
        feed(Framing::Chunked, &[b"1;", endless.as_bytes()]),
        Err(BodyError::Chunk)
    );
}

/// Finds a head in bytes that arrive in pieces.
fn find(bytes: &[u8], cuts: &[usize]) -> Result<Option<usize>, Refused> {
    let mut scanner = HeadScanner::default();
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        if let Some(end) = scanner.find(&bytes[..cut])? {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

#[test]
fn heads_are_found_wherever_they_are_cut() {
    for (text, expect) in [
        ("GET / HTTP/1.1\r\nA: b\r\n\r\nrest", Ok(Some(24))),
        ("\r\n\r\nGET / HTTP/1.1\r\n\r\nrest", Ok(Some(22))),
        ("GET / HTTP/1.1\r\nA: b\r\n", Ok(None)),
        ("GET / HTTP/1.1\nA: b\r\n\r\n", Err(Refused::LineEnd)),
        ("GET / HTTP/1.1\r\n\n", Err(Refused::LineEnd)),
        ("\nGET / HTTP/1.1\r\n\r\n", Err(Refused::LineEnd)),
    ] {
        for first in 0..text.len() {
            for second in first..text.len() {
                assert_eq!(
                    find(text.as_bytes(), &[first, second]),
                    expect,
                    "{text:?} cut at {first}, {second}"
                );
            }
        }
    }
}

fn chunked() -> impl Strategy<Value = Vec<u8>> {
    let chunk = ("[0-9a-f;=x]{0,3}", proptest::collection::vec(any::<u8>(), 1..40));
    let line = |size: usize, junk: &str| format!("{size:x};{junk}\r\n").into_bytes();
    proptest::collection::vec(chunk, 0..5).prop_map(move |chunks| {
        let mut all = Vec::new();
        for (junk, data) in chunks {
            all.extend(line(data.len(), &junk));
            all.extend(&data);
            all.extend(b"\r\n");
        }
        all.extend(b"0\r\nx-sum: 1\r\n\r\n");
        all
    })
}

proptest! {
    /// A sound body is taken whole, and no byte of what follows, however it is cut.
    #[test]
    fn cuts_change_nothing(body in chunked(), next in proptest::collection::vec(any::<u8>(), 0..20)) {
        let bytes = [&body[..], &next].concat();
        for cut in 0..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            prop_assert_eq!(feed(Framing::Chunked, &[first, second]), Ok((body.len(), true)));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(feed(Framing::Chunked, &single), Ok((body.len(), true)));
    }

    /// Whatever the bytes: cut or whole, the verdict is the same.
    #[test]
    fn garbage_is_judged_alike(bytes in "([0-3a]|\r\n|;|x|\n|\r){0,24}", cut in 0usize..24) {
        let bytes = bytes.as_bytes();
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(feed(Framing::Chunked, &[first, second]), feed(Framing::Chunked, &[bytes]));
    }

    /// What is parsed, written and parsed again is the same request.
    #[test]
    fn writing_is_reading(
        method in "[A-Z]{1,8}",
        path in "/[a-z0-9%/.?=]{0,30}",
        fields in proptest::collection::vec(("x-[a-z]{1,8}", "[ -~]{0,20}"), 0..10),
        length in 0u64..1000,
    ) {
        prop_assume!(method != "CONNECT" && !fields.iter().any(|(name, _)| name.starts_with("x-hostmesh")));
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {length}\r\n\r\n");
        let head = request(&text).expect("a sound request");
        let out = written(&head, &RequestEdits::default());
        let again = request(&out).expect("what is written is sound");
        prop_assert_eq!((again.method(), again.target(), again.framing), (head.method(), head.target(), head.framing));
        prop_assert_eq!(out.clone(), written(&again, &RequestEdits::default()));
        prop_assert_eq!(again.fields.fields.len(), fields.len() + 2);
        prop_assert_eq!(find(out.as_bytes(), &[]), Ok(Some(out.len())));
    }

    /// No input panics.
    #[test]
    fn no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = RequestHead::parse(bytes.clone());
        let _ = ResponseHead::parse(bytes, &get());
    }
}
