//! Decides whether a failed try is repeated, when, and whether the retries of a service are still affordable.

use std::time::Duration;

use crate::config::{Backoff, Hedge, Retries, RetryOn};

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The upstream answered with this status.
    Status(u16),
    /// Nothing reached the application: no connection to the endpoint, or none from there to the application.
    Connect,
    /// The connection broke after the request went out, before the response's head came.
    Reset,
    /// No response's head within the time of one try.
    TryTimeout,
    /// The upstream answered with this `grpc-status`.
    Grpc(u32),
}

impl RetryOn {
    /// Is this one of the failures that are named? `5xx` is whatever the caller would see as one.
    pub fn names(&self, failure: Failure) -> bool {
        match failure {
            Failure::Status(502..=504) => self.server_error || self.gateway_error,
            Failure::Status(409 | 425 | 429) => self.retriable_4xx,
            Failure::Status(status) => status >= 500 && self.server_error,
            Failure::Grpc(code) => code < u32::BITS && self.grpc >> code & 1 == 1,
            Failure::Connect => self.connect_failure || self.server_error || self.gateway_error,
            Failure::Reset => self.reset || self.server_error,
            Failure::TryTimeout => self.reset || self.server_error || self.gateway_error,
        }
    }
}

/// RFC 9110, section 9.2.2.
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// May there be another try after so many? `replayable`: all of the request that went out can be sent again. The budget
/// is asked separately, and last.
pub fn may_retry(policy: &Retries, failure: Failure, tries: u32, method: &str, replayable: bool) -> bool {
    if tries >= policy.attempts || !replayable || !policy.on.names(failure) {
        return false;
    }
    // What never reached the application cannot have done anything there.
    failure == Failure::Connect || policy.non_idempotent || is_idempotent(method)
}

/// May another endpoint be asked, too, after so many tries? By the rule of retries: what may happen twice, and the budget
/// is asked last. Where no retries say it, the share is [`BUDGET`].
pub fn may_hedge(policy: &Hedge, tries: u32, method: &str) -> bool {
    tries < policy.attempts && (policy.non_idempotent || is_idempotent(method))
}

/// Tries after the first as a share of requests.
pub const BUDGET: f64 = 0.2;

/// By default, from the second retry on.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(25),
    most: Duration::from_millis(250),
};

/// How long to wait after so many tries. `random` is uniform; what is spread out does not come back as one wave.
pub fn backoff(policy: Option<Backoff>, tries: u32, random: u64) -> Duration {
    let retry = match policy {
        Some(_) => tries.max(1),
        None if tries <= 1 => return Duration::ZERO,
        None => tries - 1,
    };
    let Backoff { first, most } = policy.unwrap_or(BACKOFF);
    let limit = first.saturating_mul(1 << (retry - 1).min(20)).min(most);
    Duration::from_micros(random % (limit.as_micros() as u64 + 1))
}

const WINDOW_S: usize = 10;
const MINIMUM: f64 = 30.0;

/// Retries of one service in the last ten seconds, bounded by a share of its requests. So that few callers are not cut off
/// by rounding, thirty are always allowed (unless the share is 0). One a worker: the bound holds for each.
#[derive(Debug, Default)]
pub struct Budget {
    seconds: [Second; WINDOW_S],
}

#[derive(Debug, Default, Clone, Copy)]
struct Second {
    second: u64,
    requests: u32,
    retries: u32,
}

impl Budget {
    /// Counts a request (not its retries). `now`: of a clock that never goes back.
    pub fn request(&mut self, now: Duration) {
        let second = self.second(now);
        second.requests = second.requests.saturating_add(1);
    }

    /// Takes one retry if there is one.
    pub fn take(&mut self, share: f64, now: Duration) -> bool {
        let oldest = now.as_secs().saturating_sub(WINDOW_S as u64 - 1);
        let window = self
            .seconds
            .iter()
            .filter(|second| second.second >= oldest && second.second <= now.as_secs());
        let (mut requests, mut retries) = (0.0, 0.0);
        for second in window {
            requests += f64::from(second.requests);
            retries += f64::from(second.retries);
        }
        let allowed = if share > 0.0 {
            (requests * share).max(MINIMUM)
        } else {
            0.0
        };
        if retries + 1.0 > allowed {
            return false;
        }
        self.second(now).retries += 1;
        true
    }

    fn second(&mut self, now: Duration) -> &mut Second {
        let second = now.as_secs();
        let slot = &mut self.seconds[(second % WINDOW_S as u64) as usize];
        if slot.second != second {
            *slot = Second {
                second,
                ..Second::default()
            };
        }
        slot
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
