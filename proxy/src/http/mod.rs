//! Relays HTTP/1.1: every message is read once by `hostmesh_proxy_core::http1`, its body passes as it came.
//!
//! Law: what is passed on is what was judged. A connection is used again only after both sides ended their messages; a
//! response that breaks off is never made to look whole.

mod call;
pub mod conn;
pub(crate) mod down;
mod exchange;
pub(crate) mod ext_authz;
mod hop;
mod http2;
pub mod inbound;
mod observe;
pub mod outbound;
mod route;
pub(crate) mod session;
#[cfg(test)]
mod tests;
pub mod token;
mod traced;

use std::time::Duration;

/// Body bytes kept for another try at most; a longer body is sent once.
const REPLAY: usize = 64 * 1024;
/// Body bytes that are copied behind a head so that both leave in one send.
const COALESCE: usize = 16 * 1024;
/// A client that has ended its side after a request gets so long for the answer's head: most of these have gone, and what
/// they asked for is not to be waited for without end.
const HALF_CLOSED: Duration = Duration::from_secs(10);
/// After the last response a client may send so long before its connection is cut.
const LINGER: Duration = Duration::from_secs(1);
