//! How much of a unit may be in use: rates and requests in flight, by caller or by all of them together.
//!
//! What a limit has counted is shared by all workers and outlives a change of config ([`Limit::follow`]); what was let in
//! holds its [`Slot`] until it is over, however it ends. Times are since a beginning that is the caller's.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::authorize::{Caller, Decision, Request, Verdict, fits};
use crate::config::{InboundRule, Mode, Unit};

/// Callers that one limit tells apart. Those beyond share one place, under the same limit.
pub const MOST_CALLERS: usize = 10_000;
/// Callers of whom nothing is left to know are looked for this often, where there are so many.
const SWEEP: Duration = Duration::from_secs(1);

/// So many at a steady pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// From one to the next.
    pub interval: Duration,
    /// So many may come at once.
    pub burst: u32,
}

/// Who has a count of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// Each identity; where there is none, each address.
    Caller,
    /// Nobody.
    All,
}

/// Compiled `Limit`.
#[derive(Debug)]
pub struct Limit {
    /// What it holds for.
    pub of: InboundRule,
    /// How often.
    pub rate: Option<Rate>,
    /// How many at a time.
    pub concurrent: Option<u32>,
    /// Whose count.
    pub per: Per,
    /// By [`Limit::meter`].
    meter: OnceLock<Arc<Meter>>,
}

/// Without what was counted.
impl PartialEq for Limit {
    fn eq(&self, other: &Self) -> bool {
        (&self.of, self.rate, self.concurrent, self.per) == (&other.of, other.rate, other.concurrent, other.per)
    }
}

/// What a limit has counted.
#[derive(Debug, Default)]
struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    of: HashMap<Box<str>, Arc<Count>>,
    /// Of those for whom there was no place.
    others: Arc<Count>,
    swept: Duration,
}

/// Of one caller.
#[derive(Debug, Default)]
struct Count {
    /// When the burst is whole again, in nanoseconds: the theoretical arrival time of the generic cell rate algorithm
    /// (ITU-T I.371, annex A).
    full_at: AtomicU64,
    in_flight: AtomicU32,
}

/// A place among those in flight, until it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Count>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, AcqRel);
    }
}

/// Takes one more at `now` where that keeps the pace. `full_at`: when the burst is whole again; so it is then. An error: how
/// long until one may come.
pub fn pace(rate: Rate, full_at: Duration, now: Duration) -> Result<Duration, Duration> {
    let full_at = full_at.max(now);
    let early = rate.interval.saturating_mul(rate.burst.saturating_sub(1));
    match full_at.saturating_sub(now).checked_sub(early) {
        None | Some(Duration::ZERO) => Ok(full_at.saturating_add(rate.interval)),
        Some(wait) => Err(wait),
    }
}

impl Count {
    /// How long until one may come; `None`: it is taken.
    fn take_of_rate(&self, rate: Rate, now: Duration) -> Option<Duration> {
        let mut wait = Duration::ZERO;
        let later = |full_at| match pace(rate, Duration::from_nanos(full_at), now) {
            Ok(full_at) => Some(nanos(full_at)),
            Err(more) => {
                wait = more;
                None
            }
        };
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, later).is_ok();
        (!taken).then_some(wait)
    }

    fn give_to_rate(&self, rate: Rate) {
        self.full_at.fetch_sub(nanos(rate.interval), Relaxed);
    }

    fn take_place(self: &Arc<Self>, most: u32) -> Option<Slot> {
        let more = |in_flight: u32| (in_flight < most).then(|| in_flight + 1);
        let taken = self.in_flight.fetch_update(AcqRel, Relaxed, more).is_ok();
        taken.then(|| Slot(self.clone()))
    }
}

impl Meter {
    /// The count of this caller.
    fn count(&self, who: &str, now: Duration) -> Arc<Count> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.of.get(who) {
            return count.clone();
        }
        if counts.of.len() >= MOST_CALLERS && now >= counts.swept + SWEEP {
            counts.swept = now;
            // Whoever holds one got it under this lock.
            counts
                .of
                .retain(|_, count| Arc::strong_count(count) > 1 || count.full_at.load(Relaxed) > nanos(now));
        }
        if counts.of.len() >= MOST_CALLERS {
            return counts.others.clone();
        }
        counts.of.entry(who.into()).or_default().clone()
    }
}

impl Limit {
    /// Nothing was counted yet.
    pub fn new(of: InboundRule, rate: Option<Rate>, concurrent: Option<u32>, per: Per) -> Self {
        Self {
            of,
            rate,
            concurrent,
            per,
            meter: OnceLock::new(),
        }
    }

    fn meter(&self) -> &Arc<Meter> {
        self.meter.get_or_init(Arc::default)
    }

    /// Does it count the same things? How many may be and in which line it stands are of no account.
    fn counts_as(&self, other: &Self) -> bool {
        let rule = self.of.rule.clone();
        let named = InboundRule {
            rule,
            ..other.of.clone()
        };
        self.per == other.per && self.of == named
    }

    /// Goes on with what those before it have counted.
    pub fn follow(limits: &[Self], before: &[Self]) {
        let mut left: Vec<&Self> = before.iter().collect();
        for limit in limits {
            if let Some(index) = left.iter().position(|old| limit.counts_as(old)) {
                limit.meter.get_or_init(|| left.remove(index).meter().clone());
            }
        }
    }

    /// An error: how long until there may be room.
    fn take(&self, who: &str, now: Duration) -> Result<Taken, Duration> {
        let count = self.meter().count(who, now);
        let slot = match self.concurrent {
            Some(most) => Some(count.take_place(most).ok_or(Duration::ZERO)?),
            None => None,
        };
        if let Some(rate) = self.rate
            && let Some(wait) = count.take_of_rate(rate, now)
        {
            return Err(wait);
        }
        Ok(Taken { count, slot })
    }
}

/// What one limit gave.
struct Taken {
    count: Arc<Count>,
    slot: Option<Slot>,
}

/// Takes one from every limit of `unit` that fits what was let in; from none where one of them is reached, and that is the
/// decision: a refusal, or what audit makes of it. No `request`: a connection whose bytes are carried unread.
pub fn take(
    unit: &Unit,
    caller: &Caller<'_>,
    port: u16,
    request: Option<&Request<'_>>,
    now: impl FnOnce() -> Duration,
) -> Result<Vec<Slot>, Decision> {
    if unit.limits.is_empty() {
        return Ok(Vec::new());
    }
    let now = now();
    let mut taken: Vec<(&Limit, Taken)> = Vec::new();
    for limit in &unit.limits {
        if !fits(&limit.of, caller, port, request) {
            continue;
        }
        let by_address;
        let who = match (limit.per, caller) {
            (Per::All, _) => "",
            (Per::Caller, Caller::Identity(id)) => id,
            (Per::Caller, Caller::Plaintext { address, .. }) => {
                by_address = address.to_string();
                &by_address
            }
        };
        match limit.take(who, now) {
            Ok(one) => taken.push((limit, one)),
            Err(wait) => {
                for (limit, one) in taken {
                    limit.rate.inspect(|rate| one.count.give_to_rate(*rate));
                }
                return Err(reached(unit, limit, wait));
            }
        }
    }
    Ok(taken.into_iter().filter_map(|(_, one)| one.slot).collect())
}

fn reached(unit: &Unit, limit: &Limit, wait: Duration) -> Decision {
    let verdict = match unit.mode {
        Mode::Enforce => Verdict::Limited(seconds(wait)),
        Mode::Audit => Verdict::AuditDeny,
    };
    Decision::new(verdict, limit.of.rule.clone())
}

/// Whole ones, and one at least: a client that comes back at once is too early.
fn seconds(wait: Duration) -> u32 {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u32::try_from(whole.max(1)).unwrap_or(u32::MAX)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
