//! A response's head, the answer to a GET, to a HEAD, or to a request for another protocol.
#![no_main]

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::http1::{Framing, HeadScanner, RequestHead, ResponseEdits, ResponseHead};
use libfuzzer_sys::fuzz_target;

const REQUESTS: [&str; 4] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
];

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(end)) = HeadScanner::default().find(bytes) else {
        return;
    };
    for text in REQUESTS {
        let request = RequestHead::parse(Bytes::from_static(text.as_bytes())).expect("a request");
        let Ok(head) = ResponseHead::parse(Bytes::copy_from_slice(&bytes[..end]), &request) else {
            continue;
        };
        let edits = ResponseEdits {
            close: false,
            from_application: true,
            fields: None,
        };
        let passed = written(&head, &edits);
        assert_eq!(
            HeadScanner::default().find(&passed),
            Ok(Some(passed.len())),
            "not one head"
        );
        let again = ResponseHead::parse(passed.clone(), &request).expect("what is passed on can be read");
        assert_eq!((again.status, again.framing), (head.status, head.framing));
        assert_eq!(
            written(&again, &edits),
            passed,
            "a second hop passes on what the first did"
        );
        assert!(
            again.single("x-hostmesh-error").is_none(),
            "an application speaks as the mesh"
        );
        let bodiless = head.is_interim() || matches!(head.status, 101 | 204 | 304) || request.method() == "HEAD";
        assert!(!bodiless || head.framing == Framing::Empty);
    }
});

fn written(head: &ResponseHead, edits: &ResponseEdits<'_>) -> Bytes {
    let mut out = BytesMut::new();
    head.write(edits, &mut out);
    out.freeze()
}
