//! Carries requests where HTTP/2 is spoken on one side or on both (RFC 9113): by their meaning, frame by frame.
//!
//! What goes on is method, target, fields, data and trailers; who may and how is decided where it is for HTTP/1.1.

mod body;
mod client;
mod down;
mod exchange;
mod io;
mod respond;
mod server;
mod upload;

pub use body::Source;
pub use client::{Link, Links, ask};
pub use down::chunked;
pub use exchange::{Asked, Awaited, Try};
pub use io::speaks;
pub use respond::Client;
pub use server::{serve, serve_over};
pub use upload::{Replay, Upload};

/// Received and not yet passed on at most, bytes: of a stream, of a connection.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
/// Accepted and not yet sent at most, bytes of a stream.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams on one connection at most.
const STREAMS: u32 = 2048;
/// Streams that a client opens and resets before they were looked at, at most (CVE-2023-44487).
const RESET_STREAMS: usize = 64;
