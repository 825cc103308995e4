//! Bodies and heads in pieces: wherever the bytes are cut, the same is found.

use bytes::Bytes;
use proptest::prelude::*;

use super::tests::{get, request, written};
use super::*;

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
