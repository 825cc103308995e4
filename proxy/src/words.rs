//! Words of fixed sets (`hostmesh/wire/proxy_control.py`), when they come from another process.

use hostmesh_proxy_core::flag::Flag;
use serde::{Deserialize, Deserializer};

/// One of [`KNOWN`], or a flag's.
pub type Word = &'static str;

/// Kinds, verdicts, directions, protocols and code classes.
const KNOWN: &[Word] = &[
    "request",
    "connection",
    "retry",
    "error",
    "wire",
    "token",
    "allow",
    "deny",
    "audit-deny",
    "audit-allow",
    "inbound",
    "outbound",
    "local",
    "http",
    "http2",
    "grpc",
    "tcp",
    "tls",
    "auto",
    "dns",
    "1xx",
    "2xx",
    "3xx",
    "4xx",
    "5xx",
    "ok",
    "breaker",
    "denied",
    "",
];

/// The word as this version has it; `other` for one that it has not.
pub fn known<'de, D: Deserializer<'de>>(said: D) -> Result<Word, D::Error> {
    let said = String::deserialize(said)?;
    let flags = Flag::ALL.iter().map(|flag| flag.word());
    let found = KNOWN.iter().copied().chain(flags).find(|word| *word == said);
    Ok(found.unwrap_or("other"))
}
