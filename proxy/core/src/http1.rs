//! HTTP/1.1 without sockets (RFC 9112): bytes in, heads and counts out. Strict, because a relay that reads a message in
//! another way than the server behind it lets requests through unseen.
//!
//! Law: what two parsers could frame in different ways is refused, not repaired. Bodies are counted, never changed.

use thiserror::Error;

mod body;
mod head;
mod rewrite;

pub use body::{Body, BodyError, Framing, is_never_trailer};
pub use head::{Field, HeadScanner, RequestHead, ResponseHead};
pub use rewrite::{RequestEdits, ResponseEdits, answer, continues, local_reply};
pub(crate) use {
    head::{is_authority, is_same_variable},
    rewrite::{is_hop_field, is_mesh_field},
};

/// A head may have so many bytes. nginx and HAProxy stop at 32 KiB and 16 KiB; cookies and tokens grow.
pub const MAX_HEAD: usize = 64 * 1024;
/// A head may have so many fields.
pub const MAX_FIELDS: usize = 128;

/// Why a head was refused: a request is answered with `status()`, a response counts as a broken upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the messages say it
pub enum Refused {
    #[error("the head is larger than {MAX_HEAD} bytes")]
    TooLarge,
    #[error("more than {MAX_FIELDS} header fields")]
    TooManyFields,
    #[error("a line that does not end with CR LF")]
    LineEnd,
    #[error("not HTTP/1: bad start line or header field")]
    Syntax,
    #[error("not HTTP/1.0 or HTTP/1.1")]
    Version,
    #[error("the request target is neither a path nor an http URI of the same host")]
    Target,
    #[error("no Host, more than one, or a bad one")]
    Host,
    #[error("more than one Content-Length, or not a number")]
    ContentLength,
    #[error("Transfer-Encoding and Content-Length in one message")]
    BothLengths,
    #[error("a Transfer-Encoding that is not chunked, or in HTTP/1.0")]
    TransferEncoding,
    #[error("Connection names a field that frames or routes the message")]
    Connection,
    #[error("CONNECT is not relayed")]
    Connect,
    #[error("101 without a request to upgrade")]
    Upgrade,
}

impl Refused {
    /// The status that a client is told (RFC 9110, section 15; RFC 6585, section 5).
    pub fn status(self) -> u16 {
        match self {
            Self::TooLarge | Self::TooManyFields => 431,
            Self::TransferEncoding | Self::Connect => 501,
            Self::Version => 505,
            _ => 400,
        }
    }
}

#[cfg(test)]
#[path = "http1_stream_tests.rs"]
mod stream_tests;
#[cfg(test)]
#[path = "http1_tests.rs"]
mod tests;
