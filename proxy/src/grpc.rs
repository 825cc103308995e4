//! What the proxy's own calls of gRPC have in common: how a message is framed, how a call ends, why it did not come so far
//! (grpc/doc/PROTOCOL-HTTP2.md).

use std::error::Error;
use std::num::TryFromIntError;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;

/// A message: not compressed, its length, itself. An error: it is too long for one.
pub fn framed(message: &[u8]) -> Result<Bytes, TryFromIntError> {
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len())?);
    body.put_slice(message);
    Ok(body.freeze())
}

/// How a call ended, by its trailers, or by its head where there is nothing else: the status, if it has one, and what is
/// said of it.
pub fn status(head: &HeaderMap, trailers: &HeaderMap) -> (Option<u16>, String) {
    const STATUS: &str = "grpc-status";
    let fields = if trailers.contains_key(STATUS) { trailers } else { head };
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok());
    let code = text(STATUS).and_then(|code| code.parse().ok());
    (code, text("grpc-message").unwrap_or_default().to_owned())
}

/// An error with all its causes, for a person.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}
