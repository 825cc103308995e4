//! Decides; the binary carries. No I/O, no clock, no randomness: bytes, times and random numbers are arguments.

#![forbid(unsafe_code)]

pub mod authorize;
pub mod config;
pub mod glob;
pub mod path;
pub mod snapshot;
