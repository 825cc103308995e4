//! How callers behave towards a service: the model, and its compilation.

use std::sync::Arc;
use std::time::Duration;

use super::compile::word;
use super::{ConfigError, Route, bad, routes};
use crate::balance::circuit::Resource;
use crate::snapshot;

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Balance {
    RoundRobin,
    LeastRequest,
    Ewma,
    ConsistentHash(ConsistentHash),
}

/// The same value, the same endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsistentHash {
    /// The value of what.
    pub on: HashOn,
    /// No endpoint has more in flight than so many times the mean.
    pub bound: Option<f64>,
}

/// What consistent hashing goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// A header, in lower case.
    Header(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
    /// The caller's address.
    Source,
}

/// Failures after which a try may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// Any status of 500 and above, and what `gateway_error` covers.
    pub server_error: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// No connection to the endpoint, or none to its application.
    pub connect_failure: bool,
    /// The connection broke, or the try timed out, before the response's head.
    pub reset: bool,
    /// 409, 425, 429.
    pub retriable_4xx: bool,
    /// Codes of `grpc-status`, a bit each.
    pub grpc: u32,
}

/// The codes of gRPC that can be named, <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
const GRPC: [(&str, u32); 5] = [
    ("cancelled", 1),
    ("deadline-exceeded", 4),
    ("resource-exhausted", 8),
    ("internal", 13),
    ("unavailable", 14),
];

/// How long to wait before another try: by chance up to `first`, then up to twice that… up to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

/// How callers try again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retries {
    /// Tries in all, the first included; at least 1.
    pub attempts: u32,
    /// Time limit of one try.
    pub per_try_timeout: Option<Duration>,
    /// After what.
    pub on: RetryOn,
    /// Retries as a share of requests.
    pub budget: f64,
    /// Methods that are not idempotent too.
    pub non_idempotent: bool,
    /// Waits between tries; `None`: the first retry at once, the others as by 25 ms and 250 ms.
    pub backoff: Option<Backoff>,
}

/// When another endpoint is asked, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedge {
    /// So long after a try began without a response's head.
    pub after: Duration,
    /// Tries in all, the first included; at least 2.
    pub attempts: u32,
    /// Methods that are not idempotent too.
    pub non_idempotent: bool,
}

/// When callers leave a service, or one of its endpoints, alone.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Breaker {
    pub limits: [Option<u32>; Resource::ALL.len()],
    pub outlier: Option<Outlier>,
    pub rule: Arc<str>,
}

impl Breaker {
    /// How much may be in use on this host.
    pub fn limit(&self, resource: Resource) -> Option<u32> {
        self.limits[resource as usize]
    }
}

/// Which endpoints are ejected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlier {
    /// After so many errors, one after the other.
    pub errors: u32,
    /// For so long; longer each time.
    pub eject: Duration,
    /// Of all, at most this share.
    pub most: f64,
}

/// How callers behave towards a service.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Traffic {
    pub timeout: Option<Duration>,
    /// For a connection to an endpoint.
    pub connect_timeout: Option<Duration>,
    /// Nothing moves for so long.
    pub idle_timeout: Option<Duration>,
    pub retries: Option<Retries>,
    pub hedge: Option<Hedge>,
    pub breaker: Option<Breaker>,
    pub balance: Balance,
    /// The nearest endpoints first.
    pub prefer_near: bool,
    /// An endpoint that joined gets its whole share after so long.
    pub slow_start: Option<Duration>,
    /// With a smaller share of healthy endpoints than this all count as healthy; 0: only where none is left.
    pub panic: f64,
    pub rule: Arc<str>,
    /// The first that fits; none: the service itself.
    pub routes: Vec<Arc<Route>>,
}

pub(super) fn traffic(at: &str, traffic: &snapshot::Traffic) -> Result<Traffic, ConfigError> {
    Ok(Traffic {
        timeout: duration(traffic.timeout_ms),
        connect_timeout: duration(traffic.connect_timeout_ms),
        idle_timeout: duration(traffic.idle_timeout_ms),
        retries: traffic.retries.as_ref().map(|r| retries(at, r)).transpose()?,
        hedge: traffic.hedge.as_ref().map(|said| hedge(at, said)).transpose()?,
        breaker: traffic.breaker.as_ref().map(|said| breaker(at, said)).transpose()?,
        balance: balance(at, traffic)?,
        prefer_near: word(at, &traffic.prefer, &[("any", false), ("near", true)], "any or near")?,
        slow_start: duration(traffic.slow_start_ms),
        panic: share(at, traffic.panic)?,
        rule: (&*traffic.rule).into(),
        routes: routes::compile(at, &traffic.routes)?,
    })
}

fn breaker(at: &str, said: &snapshot::Breaker) -> Result<Breaker, ConfigError> {
    let limits = [
        said.max_connections,
        said.max_pending,
        said.max_requests,
        said.max_retries,
    ];
    let outlier = Outlier {
        errors: said.consecutive_errors,
        eject: Duration::from_millis(said.eject_ms),
        most: share(at, said.max_ejected)?,
    };
    if outlier.errors > 0 && outlier.eject.is_zero() {
        return Err(bad(at, "0", "more than 0 ms of ejection"));
    }
    Ok(Breaker {
        limits: limits.map(|limit| (limit > 0).then_some(limit)),
        outlier: (outlier.errors > 0).then_some(outlier),
        rule: (&*said.rule).into(),
    })
}

fn balance(at: &str, traffic: &snapshot::Traffic) -> Result<Balance, ConfigError> {
    match (&*traffic.balance, &traffic.hash) {
        ("least-request", None) => Ok(Balance::LeastRequest),
        ("round-robin", None) => Ok(Balance::RoundRobin),
        ("ewma", None) => Ok(Balance::Ewma),
        ("consistent-hash", Some(hash)) => consistent_hash(at, hash).map(Balance::ConsistentHash),
        (word, _) => Err(bad(
            at,
            word,
            "a balance (least-request, round-robin, ewma; consistent-hash with what it goes by)",
        )),
    }
}

/// What a request is told apart by.
pub(super) fn hash_on(at: &str, on: &str) -> Result<HashOn, ConfigError> {
    match on.split_once(':') {
        Some(("header", name)) if !name.is_empty() => Ok(HashOn::Header(name.to_ascii_lowercase().into())),
        Some(("cookie", name)) if !name.is_empty() => Ok(HashOn::Cookie(name.into())),
        None if on == "source" => Ok(HashOn::Source),
        _ => Err(bad(at, on, "header:NAME, cookie:NAME or source")),
    }
}

fn consistent_hash(at: &str, hash: &snapshot::ConsistentHash) -> Result<ConsistentHash, ConfigError> {
    let on = hash_on(at, &hash.on)?;
    let bound = match hash.bound {
        0.0 => None,
        bound if (1.0..=100.0).contains(&bound) => Some(bound),
        bound => return Err(bad(at, bound.to_string(), "a bound 1..100")),
    };
    Ok(ConsistentHash { on, bound })
}

pub(super) fn retries(at: &str, retries: &snapshot::Retries) -> Result<Retries, ConfigError> {
    if retries.attempts == 0 {
        return Err(bad(at, "0", "a number of attempts, the first included"));
    }
    let backoff = match (retries.backoff_ms, retries.max_backoff_ms) {
        (0, _) => None,
        (first, most) if first <= most => Some(Backoff {
            first: Duration::from_millis(first),
            most: Duration::from_millis(most),
        }),
        (_, most) => return Err(bad(at, most.to_string(), "at least backoff_ms")),
    };
    Ok(Retries {
        attempts: retries.attempts,
        per_try_timeout: duration(retries.per_try_timeout_ms),
        on: RetryOn::of(&retries.on).ok_or_else(|| {
            bad(
                at,
                retries.on.join(", "),
                "reasons to try again (5xx, reset, unavailable …)",
            )
        })?,
        budget: share(at, retries.budget)?,
        non_idempotent: retries.non_idempotent,
        backoff,
    })
}

pub(super) fn hedge(at: &str, said: &snapshot::Hedge) -> Result<Hedge, ConfigError> {
    if said.attempts < 2 {
        return Err(bad(at, said.attempts.to_string(), "at least 2 attempts of a hedge"));
    }
    Ok(Hedge {
        after: duration(said.after_ms).ok_or_else(|| bad(at, "0", "more than 0 ms before a hedge"))?,
        attempts: said.attempts,
        non_idempotent: said.non_idempotent,
    })
}

impl RetryOn {
    /// What these words of the policy name; `None` where one is no such word.
    pub fn of(words: &[impl AsRef<str>]) -> Option<Self> {
        let mut on = Self::default();
        for word in words {
            match word.as_ref() {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "connect-failure" => on.connect_failure = true,
                "reset" => on.reset = true,
                "retriable-4xx" => on.retriable_4xx = true,
                word => on.grpc |= 1 << GRPC.iter().find(|(name, _)| *name == word)?.1,
            }
        }
        Some(on)
    }
}

fn share(at: &str, share: f64) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&share) {
        return Ok(share);
    }
    Err(bad(at, share.to_string(), "a share 0..1"))
}

pub(super) fn duration(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}
