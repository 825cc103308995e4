//! Chooses an endpoint: of two taken by chance the less busy one (the power of two choices), or one after the other.
//!
//! One `Loads` a worker: nothing is shared, and a worker's own requests in flight say enough. Keeps the retry budgets too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Balance, Endpoint, Service};
use crate::retry::Budget;

/// Requests in flight by endpoint; by service whose turn it is, and its retries. Kept over changes of the configuration.
#[derive(Debug, Default)]
pub struct Loads {
    in_flight: HashMap<u64, u32>,
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

    /// Chooses. `tried`: ids that failed this request already, taken again only if there is no other. `None`: the
    /// service has no endpoint.
    pub fn pick<'a>(&mut self, service: &'a Service, tried: &[u64], random: u64) -> Option<&'a Arc<Endpoint>> {
        let all = &service.endpoints;
        let fresh: Vec<&Arc<Endpoint>>;
        let from: &dyn Fn(usize) -> &'a Arc<Endpoint>;
        let (by_index, by_fresh);
        let count;
        if tried.is_empty() || all.iter().all(|endpoint| tried.contains(&endpoint.id)) {
            count = all.len();
            by_index = |index: usize| &all[index];
            from = &by_index;
        } else {
            fresh = all.iter().filter(|endpoint| !tried.contains(&endpoint.id)).collect();
            count = fresh.len();
            by_fresh = |index: usize| fresh[index];
            from = &by_fresh;
        }
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
