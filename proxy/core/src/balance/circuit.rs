//! What callers of a service have in common on this host: how much of it is in use, and which endpoints are ejected.
//!
//! Shared by all workers, so that a limit is one of the whole proxy and an ejection is known to all at once; touched only
//! where a policy says so. Times are since a beginning that is the caller's.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;

use crate::config::Outlier;

/// What a policy can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Resource {
    /// Connections of TCP, and streams that carry a request.
    Connections,
    /// Requests and connections that wait for one.
    Pending,
    /// Requests.
    Requests,
    /// Tries after the first.
    Retries,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    /// The word in metrics and lines; in a policy it is the same with `max_`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

/// A breaker that is open is closed when nothing was refused for so long.
pub const QUIET: Duration = Duration::from_secs(1);
/// An ejection lasts so many times the first one at most.
const LONGEST: u32 = 10;

#[derive(Debug, Default)]
struct Gate {
    in_use: AtomicU32,
    is_open: AtomicBool,
    refused: AtomicU64,
    /// Milliseconds.
    refused_at: AtomicU64,
}

/// Of one service.
#[derive(Debug, Default)]
pub struct Circuit {
    gates: [Gate; Resource::ALL.len()],
    ejected: AtomicU32,
    ejections: AtomicU64,
    unpaid: AtomicU64,
    /// Under way to it, for mirrors.
    copies: AtomicU32,
}

/// Of one endpoint.
#[derive(Debug, Default)]
pub struct Standing {
    /// One after the other.
    errors: AtomicU32,
    is_ejected: AtomicBool,
    /// In a row.
    ejections: AtomicU32,
    /// Milliseconds; until then the next ejection is one more of that row.
    on_trial_until: AtomicU64,
}

impl Circuit {
    /// Takes one more where that stays within the limit: to be given back.
    pub fn take(&self, resource: Resource, limit: u32) -> bool {
        let more = |in_use: u32| (in_use < limit).then(|| in_use + 1);
        // In one order with what others take and give: who waits for room must not miss it.
        let in_use = &self.gates[resource as usize].in_use;
        in_use.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Gives it back.
    pub fn give(&self, resource: Resource) {
        self.gates[resource as usize].in_use.fetch_sub(1, SeqCst);
    }

    /// How much is in use.
    pub fn in_use(&self, resource: Resource) -> u32 {
        self.gates[resource as usize].in_use.load(SeqCst)
    }

    /// Takes one more of the copies that may be under way where that stays within `most`: to be given back.
    pub fn take_copy(&self, most: u32) -> bool {
        let more = |copies: u32| (copies < most).then(|| copies + 1);
        self.copies.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Gives it back.
    pub fn give_copy(&self) {
        self.copies.fetch_sub(1, Relaxed);
    }

    /// Somebody was refused for want of it. Was the breaker closed until now?
    pub fn refused(&self, resource: Resource, now: Duration) -> bool {
        let gate = &self.gates[resource as usize];
        gate.refused.fetch_add(1, Relaxed);
        gate.refused_at.store(millis(now), Relaxed);
        !gate.is_open.swap(true, Relaxed)
    }

    /// Closes the breaker when nothing was refused for [`QUIET`]; else how long to wait until that may be.
    pub fn close(&self, resource: Resource, now: Duration) -> Result<(), Duration> {
        let gate = &self.gates[resource as usize];
        let since = now.saturating_sub(Duration::from_millis(gate.refused_at.load(Relaxed)));
        if since < QUIET {
            return Err(QUIET - since);
        }
        gate.is_open.store(false, Relaxed);
        Ok(())
    }

    /// An endpoint has failed. For how long it is ejected, if it is by this: the caller puts it back then ([`Self::put_back`]).
    /// `count`: endpoints of the service.
    pub fn failed(&self, standing: &Standing, policy: &Outlier, count: usize, now: Duration) -> Option<Duration> {
        let errors = standing.errors.fetch_add(1, Relaxed).saturating_add(1);
        if errors < policy.errors || standing.is_ejected.swap(true, Relaxed) {
            return None;
        }
        let most = (policy.most * count as f64).floor() as u32;
        let one_more = |ejected: u32| (ejected < most).then(|| ejected + 1);
        if self.ejected.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            standing.is_ejected.store(false, Relaxed);
            return None;
        }
        self.ejections.fetch_add(1, Relaxed);
        let is_again = millis(now) < standing.on_trial_until.load(Relaxed);
        let row = if is_again {
            standing.ejections.load(Relaxed) + 1
        } else {
            1
        };
        standing.ejections.store(row, Relaxed);
        let time = policy.eject * row.min(LONGEST);
        standing.on_trial_until.store(millis(now + time * 2), Relaxed);
        standing.errors.store(0, Relaxed);
        Some(time)
    }

    /// Its time is over.
    pub fn put_back(&self, standing: &Standing) {
        standing.succeeded();
        if standing.is_ejected.swap(false, Relaxed) {
            self.ejected.fetch_sub(1, Relaxed);
        }
    }

    /// Is any endpoint ejected?
    pub fn has_ejected(&self) -> bool {
        self.ejected.load(Relaxed) > 0
    }

    /// A retry that the budget did not pay for.
    pub fn unpaid(&self) {
        self.unpaid.fetch_add(1, Relaxed);
    }

    /// Is its breaker open, and how often was it refused?
    pub fn refusals(&self, resource: Resource) -> (bool, u64) {
        let gate = &self.gates[resource as usize];
        (gate.is_open.load(Relaxed), gate.refused.load(Relaxed))
    }

    /// Endpoints that are ejected now, ejections since the start, retries that no budget paid for.
    pub fn counts(&self) -> (u32, u64, u64) {
        let (ejections, unpaid) = (self.ejections.load(Relaxed), self.unpaid.load(Relaxed));
        (self.ejected.load(Relaxed), ejections, unpaid)
    }
}

impl Standing {
    /// It has answered: its errors are forgotten.
    pub fn succeeded(&self) {
        if self.errors.load(Relaxed) != 0 {
            self.errors.store(0, Relaxed);
        }
    }

    /// Is it ejected?
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Relaxed)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "circuit_tests.rs"]
mod tests;
