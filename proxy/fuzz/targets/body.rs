//! A chunked body: the same bytes belong to it however they are cut, and nothing after its end does.
#![no_main]

use hostmesh_proxy_core::http1::{Body, BodyError, Framing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    let whole = feed(bytes, bytes.len().max(1));
    assert_eq!(whole, feed(bytes, usize::from(*size % 16) + 1), "cuts change the body");
    if let Ok((taken, true)) = whole {
        assert!(bytes[..taken].ends_with(b"\r\n\r\n"));
        assert_eq!(feed(&bytes[..taken], 3), Ok((taken, true)));
        if let Some(before) = taken.checked_sub(1) {
            assert_eq!(
                feed(&bytes[..before], 7),
                Ok((before, false)),
                "it was over before its end"
            );
        }
    }
});

/// Bytes taken, and is it over?
fn feed(bytes: &[u8], size: usize) -> Result<(usize, bool), BodyError> {
    let mut body = Body::new(Framing::Chunked);
    let mut taken = 0;
    for piece in bytes.chunks(size) {
        taken += body.feed(piece)?;
    }
    Ok((taken, body.is_done()))
}
