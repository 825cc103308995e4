//! A request's head: found the same however it is cut; what is passed on reads as what was judged.
#![no_main]

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::http1::{HeadScanner, Refused, RequestEdits, RequestHead};
use hostmesh_proxy_core::path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let found = HeadScanner::default().find(bytes);
    assert_eq!(found, by_the_byte(bytes), "cuts change what is found");
    let Ok(Some(end)) = found else { return };
    let Ok(head) = RequestHead::parse(Bytes::copy_from_slice(&bytes[..end])) else {
        return;
    };
    let passed = written(&head);
    assert_eq!(
        HeadScanner::default().find(&passed),
        Ok(Some(passed.len())),
        "not one head"
    );
    let again = RequestHead::parse(passed.clone()).expect("what is passed on can be read");
    assert_eq!(
        (again.method(), again.target(), again.path(), again.host()),
        (head.method(), head.target(), head.path(), head.host())
    );
    assert_eq!(
        (again.framing, again.upgrade, again.is_http11, again.expects_continue()),
        (head.framing, head.upgrade, head.is_http11, head.expects_continue())
    );
    assert_eq!(written(&again), passed, "a second hop passes on what the first did");
    again
        .headers()
        .each("x-hostmesh-peer", &mut |_| panic!("a caller says who it is"));
    if let Ok(normal) = path::normal(head.path()) {
        assert_eq!(
            path::normal(&normal).as_deref(),
            Ok(&*normal),
            "a normal path has another normal form"
        );
    }
});

fn by_the_byte(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    let mut scanner = HeadScanner::default();
    for end in 1..=bytes.len() {
        if let Some(end) = scanner.find(&bytes[..end])? {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

fn written(head: &RequestHead) -> Bytes {
    let mut out = BytesMut::new();
    head.write(&RequestEdits::default(), &mut out);
    out.freeze()
}
