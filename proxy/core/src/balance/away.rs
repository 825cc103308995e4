//! Which endpoints cannot be reached: each is left alone, then tried beside the traffic, less and less often.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an endpoint is left alone after the first failure; twice as long after each more.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(30);
/// What nobody asked about for so long after its time was over is forgotten: the endpoint may be no more.
const FORGOTTEN: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Away {
    failures: u32,
    until: Instant,
    /// Somebody is trying.
    tried: bool,
}

/// Endpoints, by id.
#[derive(Debug, Default)]
pub struct Unreachable(HashMap<u64, Away>);

impl Unreachable {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Is this one away?
    pub fn contains(&self, id: u64) -> bool {
        self.0.contains_key(&id)
    }

    /// It could not be reached, by whoever was first to wait for it; who waited with him counts no more.
    pub fn add(&mut self, id: u64, now: Instant) {
        let away = self.0.entry(id).or_insert(Away {
            failures: 0,
            until: now,
            tried: false,
        });
        if away.tried || away.until <= now {
            away.until = now + MOST.min(FIRST * 2u32.saturating_pow(away.failures));
            away.failures = away.failures.saturating_add(1);
            away.tried = false;
        }
    }

    /// It was reached.
    pub fn remove(&mut self, id: u64) {
        self.0.remove(&id);
    }

    /// Who was to try it found out nothing: the next one may.
    pub fn not_tried(&mut self, id: u64) {
        if let Some(away) = self.0.get_mut(&id) {
            away.tried = false;
        }
    }

    /// Was it left alone long enough, and does nobody try it? Then the caller does.
    pub fn is_due(&mut self, id: u64, now: Instant) -> bool {
        let away = self.0.get_mut(&id);
        away.is_some_and(|away| away.until <= now && !std::mem::replace(&mut away.tried, true))
    }

    /// Forgets endpoints that nobody calls any more.
    pub fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, away| now < away.until + FORGOTTEN);
    }
}
