//! What a caller says of its trace (a byte: in which ways it is passed on; then a request's head): whatever it is, the
//! next reads our span of it, in each way, and nothing of the caller's beside it.
#![no_main]

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::http1::{Refused, RequestEdits, RequestHead};
use hostmesh_proxy_core::trace::{Formats, Incoming, is_field};
use libfuzzer_sys::fuzz_target;

const FORMATS: [Formats; 3] = [Formats::W3C, Formats::B3, Formats::B3_MULTI];

fuzz_target!(|input: &[u8]| {
    let Some((ways, head)) = input.split_first() else {
        return;
    };
    let Ok(request) = RequestHead::parse(Bytes::copy_from_slice(head)) else {
        return;
    };
    let mut chance = 0;
    let random = || {
        chance += 1;
        chance
    };
    let incoming = Incoming::read(request.headers());
    let span = incoming.span(random, 0.5);
    assert!(span.trace_id != 0 && span.span_id != 0);
    if let Some(parent) = incoming.parent {
        assert_eq!(parent.trace_id, span.trace_id);
    }
    let mut wanted = Formats::default();
    for (bit, format) in FORMATS.into_iter().enumerate() {
        if ways >> bit & 1 == 1 {
            wanted = wanted.and(format);
        }
    }
    let trace = incoming.outgoing(span, incoming.parent.map(|parent| parent.span_id), wanted);
    let mut written = BytesMut::new();
    let edits = RequestEdits {
        trace: Some(trace),
        ..RequestEdits::default()
    };
    request.write(&edits, &mut written);
    let next = match RequestHead::parse(written.freeze()) {
        // It had as many fields as one may have, and ours came to them.
        Err(Refused::TooManyFields | Refused::TooLarge) => return,
        next => next.expect("what we write"),
    };
    let mut fields = Vec::new();
    next.headers().all(&mut |name, value| {
        if is_field(name) {
            fields.push((name.to_ascii_lowercase(), value.to_vec()));
        }
    });
    let mut ours = Vec::new();
    trace.fields(|name, value| ours.push((name.as_bytes().to_vec(), value.to_vec())));
    assert_eq!(fields, ours, "the caller's are replaced, ours are there once");
    if !ours.is_empty() {
        assert_eq!(Incoming::read(next.headers()).parent, Some(span));
    }
});
