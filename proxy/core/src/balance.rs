//! Chooses an endpoint: of two taken by chance the less busy one (the power of two choices), or one after the other.
//!
//! An endpoint that cannot be reached is avoided until it was reached again, which is tried beside the traffic. One
//! `Loads` a worker: nothing is shared, and a worker's own requests in flight say enough. Keeps the retry budgets too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Balance, Endpoint, Service};
use crate::retry::Budget;

/// How long an endpoint is left alone after the first failure; twice as long after each more.
const AWAY_FIRST: Duration = Duration::from_secs(1);
const AWAY_MOST: Duration = Duration::from_secs(30);
/// What nobody asked about for so long after its time was over is forgotten: the endpoint may be no more.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// An endpoint that could not be reached.
#[derive(Debug)]
struct Away {
    failures: u32,
    until: Instant,
    /// Somebody is trying.
    tried: bool,
}

/// Requests in flight by endpoint, and which cannot be reached; by service whose turn it is, and its retries. Kept over
/// changes of the configuration.
#[derive(Debug, Default)]
pub struct Loads {
    in_flight: HashMap<u64, u32>,
    away: HashMap<u64, Away>,
    turns: HashMap<Arc<str>, usize>,
    budgets: HashMap<Arc<str>, Budget>,
    first: Option<Instant>,
}

impl Loads {
    /// A request goes to this endpoint.
    pub fn begin(&mut self, endpoint: &Endpoint) {
        *self.in_flight.entry(endpoint.id).or_default() += 1;
    }

    /// It ended, however.
    pub fn end(&mut self, id: u64) {
        if let Some(count) = self.in_flight.get_mut(&id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.in_flight.remove(&id);
            }
        }
    }

    /// The time of the budgets: since the first time that was asked for.
    pub fn clock(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.first.get_or_insert(now))
    }

    /// The retry budget of a service.
    pub fn budget(&mut self, service: &Arc<str>) -> &mut Budget {
        self.budgets.entry(service.clone()).or_default()
    }

    /// Requests in flight to an endpoint.
    pub fn in_flight(&self, id: u64) -> u32 {
        self.in_flight.get(&id).copied().unwrap_or_default()
    }

    /// The endpoint's host could not be reached, by whoever was first to wait for it; who waited with him counts no more.
    pub fn unreachable(&mut self, id: u64, now: Instant) {
        let away = self.away.entry(id).or_insert(Away {
            failures: 0,
            until: now,
            tried: false,
        });
        if away.tried || away.until <= now {
            away.until = now + AWAY_MOST.min(AWAY_FIRST * 2u32.saturating_pow(away.failures));
            away.failures = away.failures.saturating_add(1);
            away.tried = false;
        }
    }

    /// It was reached.
    pub fn reached(&mut self, id: u64) {
        self.away.remove(&id);
    }

    /// Who was to try it found out nothing: the next one may.
    pub fn not_tried(&mut self, id: u64) {
        if let Some(away) = self.away.get_mut(&id) {
            away.tried = false;
        }
    }

    /// An endpoint of the service that was left alone long enough: the caller tries it, and says what came of it.
    pub fn due<'a>(&mut self, service: &'a Service, now: Instant) -> Option<&'a Arc<Endpoint>> {
        if self.away.is_empty() {
            return None;
        }
        service.endpoints.iter().find(|endpoint| {
            let away = self.away.get_mut(&endpoint.id);
            away.is_some_and(|away| away.until <= now && !std::mem::replace(&mut away.tried, true))
        })
    }

    /// Forgets endpoints that nobody calls any more.
    pub fn sweep(&mut self, now: Instant) {
        self.away.retain(|_, away| now < away.until + FORGOTTEN);
    }

    /// Chooses among those that can be reached, then among all. `tried`: ids that failed this request already, taken
    /// again only if there is no other. `None`: the service has no endpoint.
    pub fn pick<'a>(&mut self, service: &'a Service, tried: &[u64], random: u64) -> Option<&'a Arc<Endpoint>> {
        let all = &service.endpoints;
        if tried.is_empty() && self.away.is_empty() {
            return self.choose(service, &|index| &all[index], all.len(), random);
        }
        let mut from: Vec<_> = all
            .iter()
            .filter(|endpoint| !self.away.contains_key(&endpoint.id))
            .collect();
        if from.is_empty() {
            from = all.iter().collect();
        }
        let is_untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.id);
        if from.iter().any(is_untried) {
            from.retain(is_untried);
        }
        self.choose(service, &|index| from[index], from.len(), random)
    }

    fn choose<'a>(
        &mut self,
        service: &Service,
        from: &dyn Fn(usize) -> &'a Arc<Endpoint>,
        count: usize,
        random: u64,
    ) -> Option<&'a Arc<Endpoint>> {
        match count {
            0 => None,
            1 => Some(from(0)),
            _ => Some(match service.traffic.balance {
                Balance::RoundRobin => from(self.turn(&service.name) % count),
                Balance::LeastRequest => self.less_busy(from, count, random),
            }),
        }
    }

    fn turn(&mut self, service: &Arc<str>) -> usize {
        let turn = self.turns.entry(service.clone()).or_default();
        *turn = turn.wrapping_add(1);
        *turn - 1
    }

    fn less_busy<'a>(&self, from: &dyn Fn(usize) -> &'a Arc<Endpoint>, count: usize, random: u64) -> &'a Arc<Endpoint> {
        let first = (random >> 32) as usize % count;
        // Any but the first, each as likely.
        let second = (first + 1 + random as u32 as usize % (count - 1)) % count;
        let (first, second) = (from(first), from(second));
        if self.in_flight(second.id) < self.in_flight(first.id) {
            second
        } else {
            first
        }
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
