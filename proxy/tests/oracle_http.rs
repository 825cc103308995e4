//! Requests by the thousand, made of sound and hostile parts, and the corpus: the relay reads them as hyper does.

mod corpus;
#[allow(dead_code)] // the fuzz target uses the rest
mod oracle;

use std::cell::Cell;

use corpus::corpus;
use oracle::{Agreed, compare};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The same word, most of the time; else one of others that a parser may take for it.
fn mostly(usual: &'static str, others: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![24 => Just(usual), 1 => select(others)].prop_map(str::to_owned)
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "/[a-z0-9/.%~;,=&?-]{0,12}",
        1 => "[ -~\u{80}-\u{ff}]{0,8}",
        1 => select(&[
            "http://web/a", "http://web", "HTTP://web/", "http://web?x", "http://web:80/", "http://w@web/", "*", "//web/a",
            "/a#b", "/a b", "https://web/", "web:80", "/%2e%2e/", "/\\..\\", "/{a}|\"", "/\t",
        ][..]).prop_map(str::to_owned),
    ]
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => ("[A-Za-z][A-Za-z0-9_-]{0,6}", "[ -~\t]{0,10}").prop_map(|(name, value)| format!("{name}: {value}")),
        4 => select(&[
            "Connection: close", "Connection: keep-alive, X-A", "Connection: upgrade", "Upgrade: websocket", "TE: trailers",
            "X_Hostmesh_Peer: a", "X-A: 1", "Expect: 100-continue", "Accept:", "X-A:\t1 ", "Keep-Alive: 5",
        ][..]).prop_map(str::to_owned),
        1 => "[ -~\t\u{80}-\u{ff}]{0,12}",
        1 => select(&[
            "Host: other", "Content-Length: 3", "Content-Length: +3", "Content-Length: 3, 3", "Content-Length : 3",
            "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding:\tchunked", " folded",
            "Transfer-Encoding: identity", "Transfer_Encoding: chunked", "X\u{0}: 1", "X: a\u{0}", "X: a\rb", "X: a\nb",
        ][..]).prop_map(str::to_owned),
    ]
}

/// A body's fields and its bytes.
fn body() -> impl Strategy<Value = (String, String)> {
    let chunk = (
        prop_oneof![4 => Just(None), 1 => select(&["0", "-1", "0x3", "fffffffffffffffff", " 3", "3 ", ""][..]).prop_map(Some)],
        mostly("", &[";a", ";a=b", ";a=\"\r\n\"", "; a", ";\n", "\t"]),
        mostly("\r\n", &["\n", "\r", "\r\n\r\n"]),
        "[a-z\r\n]{1,20}",
        mostly("\r\n", &["\n", "", "\r\n\r\n"]),
    );
    let chunk = chunk.prop_map(|(size, extension, line, data, end)| {
        let size = size.map_or_else(|| format!("{:x}", data.len()), str::to_owned);
        format!("{size}{extension}{line}{data}{end}")
    });
    let last = mostly(
        "0\r\n\r\n",
        &[
            "0\r\nX-T: 1\r\n\r\n",
            "00\r\n\r\n",
            "0\n\n",
            "0\r\nHost: a\r\n\r\n",
            "0\r\n",
            "",
        ],
    );
    prop_oneof![
        4 => Just((String::new(), String::new())),
        3 => "[a-zA-Z /\r\n]{0,20}".prop_map(|data| (format!("Content-Length: {}\r\n", data.len()), data)),
        1 => ("[0-9]{1,3}", "[a-z]{0,20}").prop_map(|(length, data)| (format!("Content-Length: {length}\r\n"), data)),
        4 => (vec(chunk, 0..3), last).prop_map(|(chunks, last)| {
            ("Transfer-Encoding: chunked\r\n".to_owned(), chunks.concat() + &last)
        }),
    ]
}

fn request() -> impl Strategy<Value = String> {
    let line_end = || mostly("\r\n", &["\n", "\r", "\r\n ", " \r\n"]);
    let start = (
        mostly(
            "GET",
            &["POST", "HEAD", "CONNECT", "get", "G@T", "G\tT", "PRI", "OPTIONS", ""],
        ),
        target(),
        mostly(
            "HTTP/1.1",
            &["HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1.1 ", ""],
        ),
    );
    let fields = vec((field(), line_end()), 0..4).prop_map(|fields| {
        let lines: Vec<_> = fields.into_iter().map(|(field, end)| field + &end).collect();
        lines.concat()
    });
    let host = mostly(
        "Host: web\r\n",
        &["", "Host: web:80\r\n", "Host:\r\n", "Host: a b\r\n", "Host: w@b\r\n"],
    );
    (
        mostly("", &["\r\n", "\n", " "]),
        start,
        line_end(),
        host,
        fields,
        body(),
        line_end(),
    )
        .prop_map(
            |(before, (method, target, version), end, host, fields, (framing, body), last)| {
                format!("{before}{method} {target} {version}{end}{host}{fields}{framing}{last}{body}")
            },
        )
}

/// Some requests on one connection, with a byte or two that came out otherwise.
fn connection() -> impl Strategy<Value = Vec<u8>> {
    let slips = vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    (vec(request(), 1..4), prop_oneof![3 => Just(Vec::new()), 1 => slips]).prop_map(|(requests, slips)| {
        let text = requests.concat();
        let mut bytes: Vec<u8> = text.chars().map(|char| char as u8).collect();
        for (at, byte) in slips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

#[test]
fn generated_requests_are_read_as_hyper_reads_them() {
    let (cases, whole, stricter) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let config = Config {
        cases: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    // The same each time: what is new is searched for by `make fuzz`.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let ran = runner.run(&connection(), |bytes| {
        let agreed = compare(&bytes);
        cases.set(cases.get() + 1);
        whole.set(whole.get() + agreed.requests);
        stricter.set(stricter.get() + agreed.stricter);
        Ok(())
    });
    ran.expect("no difference");
    assert!(
        whole.get() > cases.get() / 4,
        "of {cases:?} connections {whole:?} sound requests say little"
    );
    assert!(
        stricter.get() < whole.get() / 10,
        "hyper refuses {stricter:?} that we accept"
    );
}

#[test]
fn the_corpus_is_read_as_hyper_reads_it() {
    let mut agreed = Agreed::default();
    for (_, case) in corpus::<toml::Table>("http") {
        let sent = case["send"].as_str().expect("a text");
        let bytes: Vec<u8> = sent.chars().map(|char| char as u8).collect();
        let of_case = compare(&bytes);
        agreed.requests += of_case.requests;
        agreed.stricter += of_case.stricter;
    }
    assert!(agreed.requests > 20, "{agreed:?}");
    assert_eq!(agreed.stricter, 0, "{agreed:?}");
}
