//! Words of fixed sets (`hostmesh/wire/proxy_control.py`), when they come from another process.

use serde::{Deserialize, Deserializer};

/// One of [`KNOWN`].
pub type Word = &'static str;

/// Kinds, verdicts, directions, protocols, code classes and flags.
const KNOWN: &[Word] = &[
    "request",
    "connection",
    "denied",
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
    "closed",
    "bad-path",
    "bad-request",
    "bad-response",
    "breaker",
    "breaker-open",
    "connect-failure",
    "denied",
    "ejected",
    "fault",
    "gone",
    "mirrored",
    "no-endpoint",
    "no-route",
    "no-token",
    "bad-token",
    "not-ready",
    "redirected",
    "reset",
    "responded",
    "slow-request",
    "timeout",
    "",
];

/// The word as this version has it; `other` for one that it has not.
pub fn known<'de, D: Deserializer<'de>>(said: D) -> Result<Word, D::Error> {
    let said = String::deserialize(said)?;
    Ok(KNOWN.iter().find(|word| **word == said).copied().unwrap_or("other"))
}
