//! Routes and a request: whatever a route makes of the request, what is judged is what is sent, framed as it came.
#![no_main]

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::authorize::{Headers, Request, Token};
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::fields::{Changes, as_sent};
use hostmesh_proxy_core::http1::{HeadScanner, MAX_FIELDS, MAX_HEAD, RequestEdits, RequestHead};
use hostmesh_proxy_core::path;
use hostmesh_proxy_core::route::{Action, Choice, Then, View, choose};
use hostmesh_proxy_core::snapshot::Route;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (text, bytes) = (&bytes[..end], &bytes[end + 1..]);
    let Ok(routes) = serde_json::from_slice::<Vec<Route>>(text) else {
        return;
    };
    let Ok(routes) = Config::routes(&routes) else { return };
    let Ok(Some(end)) = HeadScanner::default().find(bytes) else {
        return;
    };
    let Ok(head) = RequestHead::parse(Bytes::copy_from_slice(&bytes[..end])) else {
        return;
    };
    let asked = Request {
        method: head.method(),
        path: head.path(),
        headers: head.headers(),
        token: Token::None,
    };
    let view = View {
        request: asked,
        query: head.query(),
        source: [198, 18, 0, 1].into(),
    };
    let seed = bytes.len() as u64;
    let taken = match choose(&routes, &view, || seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        Choice::Service => return,
        Choice::BadPath(_) => return assert!(path::normal(head.path()).is_err()),
        Choice::Route(taken) => taken,
    };
    match (taken.then, &taken.route.action) {
        (Then::Redirect { location, .. }, _) => assert!(location.bytes().all(|byte| byte > b' ' && byte != 0x7f)),
        (Then::Forward { target, .. }, Action::Forward(Some(rewrite))) => {
            if let Some(target) = &target {
                let path = path::of_target(target);
                assert_eq!(path::normal(path).as_deref(), Ok(path), "a rewritten path is normal");
            }
            passed_on(
                &head,
                asked,
                &Changes {
                    target: target.as_deref(),
                    host: rewrite.host.as_deref(),
                    fields: &rewrite.fields,
                },
            );
        }
        _ => {}
    }
});

fn passed_on(head: &RequestHead, asked: Request<'_>, changes: &Changes<'_>) {
    let mut out = BytesMut::new();
    let edits = RequestEdits {
        changes: Some(changes),
        ..RequestEdits::default()
    };
    head.write(&edits, &mut out);
    let lines = out.iter().filter(|byte| **byte == b'\n').count();
    if out.len() >= MAX_HEAD || lines > MAX_FIELDS {
        return;
    }
    let sent = RequestHead::parse(out.freeze()).expect("what is passed on can be read");
    assert_eq!((sent.framing, sent.upgrade), (head.framing, head.upgrade), "as it came");
    let same = |judged: &Request<'_>| {
        assert_eq!(
            (judged.method, judged.path),
            (sent.method(), sent.path()),
            "judged as sent"
        );
        for (name, _) in changes.puts() {
            assert_eq!(lines_of(judged.headers, name), lines_of(sent.headers(), name), "{name}");
        }
    };
    as_sent(asked, Some(changes), same);
}

fn lines_of(headers: &dyn Headers, name: &str) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    headers.each(name, &mut |line| lines.push(line.to_vec()));
    lines
}
