//! Decides; the binary carries. No I/O, no clock, no randomness: bytes, times and random numbers are arguments.

#![forbid(unsafe_code)]

pub mod authorize;
pub mod balance;
pub mod claims;
pub mod config;
pub mod dns;
pub mod error;
pub mod ext_authz;
pub mod fields;
pub mod flag;
pub mod glob;
pub mod helper;
pub mod http1;
pub mod http2;
pub mod limit;
pub mod names;
pub mod opening;
pub mod overload;
pub mod path;
pub mod retry;
pub mod revoked;
pub mod route;
pub mod snapshot;
mod snapshot_routes;
pub mod template;
pub mod token;
pub mod trace;
