//! Chooses an endpoint, by the service's policy and what is known of its endpoints.
//!
//! One that cannot be reached, or is ejected, is avoided. One `Loads` a worker: nothing is shared, and a worker's own
//! requests in flight say enough. Keeps the retry budgets too. What the policy does not say costs nothing here.

mod away;
mod choice;
pub mod circuit;
mod ewma;
pub mod hash;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Balance, Endpoint, Service};
use crate::error::Fault;
use crate::retry::Budget;

/// What a request brings to the choice.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Ids that failed it already: taken again only if there is no other.
    pub tried: &'a [u64],
    /// Uniform.
    pub random: u64,
    /// Now.
    pub now: Instant,
    /// Digest of what consistent hashing goes by; `None`: it has none, and any endpoint does.
    pub key: Option<u64>,
}

/// Requests in flight by endpoint, how long they took, and which cannot be reached; by service whose turn it is, and its
/// retries. Kept over changes of the configuration.
#[derive(Debug, Default)]
pub struct Loads {
    in_flight: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
    away: away::Unreachable,
    latencies: ewma::Latencies,
    turns: HashMap<Arc<str>, usize>,
    budgets: HashMap<Arc<str>, Budget>,
    first: Option<Instant>,
}

/// Hashes nothing: an endpoint's id is a digest.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash::digest([bytes]);
    }

    fn finish(&self) -> u64 {
        self.0
    }
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

    /// Where it goes by latency: the head of its answer came, or it failed.
    pub fn answered(&mut self, id: u64, took: Duration, failed: bool, now: Instant) {
        self.latencies.add(id, took, failed, now);
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
        self.away.add(id, now);
    }

    /// It was reached.
    pub fn reached(&mut self, id: u64) {
        self.away.remove(id);
    }

    /// Who was to try it found out nothing: the next one may.
    pub fn not_tried(&mut self, id: u64) {
        self.away.not_tried(id);
    }

    /// An endpoint of the service that was left alone long enough: the caller tries it, and says what came of it.
    pub fn due<'a>(&mut self, service: &'a Service, now: Instant) -> Option<&'a Arc<Endpoint>> {
        if self.away.is_empty() {
            return None;
        }
        let mut endpoints = service.endpoints.iter();
        endpoints.find(|endpoint| self.away.is_due(endpoint.id, now))
    }

    /// Forgets endpoints that nobody calls any more.
    pub fn sweep(&mut self, now: Instant) {
        self.away.sweep(now);
        self.latencies.sweep(now);
    }

    /// Chooses among those that the policy prefers. A fault: nobody is there to be called.
    pub fn pick<'a>(&mut self, service: &'a Service, ask: Ask<'_>) -> Result<&'a Arc<Endpoint>, Fault> {
        let (all, traffic) = (&service.endpoints, &service.traffic);
        let has_ejected = traffic.breaker.is_some() && service.circuit().has_ejected();
        let is_plain = !traffic.prefer_near && traffic.slow_start.is_none() && !has_ejected;
        if is_plain && ask.tried.is_empty() && self.away.is_empty() {
            return self.choose(service, &|index| &all[index], all.len(), ask);
        }
        let is_away = |endpoint: &Endpoint| self.away.contains(endpoint.id);
        let is_ejected = |endpoint: &Endpoint| has_ejected && endpoint.standing().is_ejected();
        let mut from = choice::healthy(service, is_away, is_ejected)?;
        let is_untried = |endpoint: &&Arc<Endpoint>| !ask.tried.contains(&endpoint.id);
        if from.iter().any(is_untried) {
            from.retain(is_untried);
        }
        if traffic.prefer_near {
            from = choice::near(service, from, ask.random);
        }
        // By hash the same value goes to the same endpoint from the beginning.
        if let Some(over) = traffic.slow_start
            && !matches!(traffic.balance, Balance::ConsistentHash(_))
        {
            from = choice::grown(from, over, ask.now, ask.random);
        }
        self.choose(service, &|index| from[index], from.len(), ask)
    }

    fn choose<'a>(
        &mut self,
        service: &Service,
        from: &dyn Fn(usize) -> &'a Arc<Endpoint>,
        count: usize,
        ask: Ask<'_>,
    ) -> Result<&'a Arc<Endpoint>, Fault> {
        match count {
            0 => return Err(Fault::NoEndpoint),
            1 => return Ok(from(0)),
            _ => {}
        }
        let index = match (&service.traffic.balance, ask.key) {
            (Balance::RoundRobin, _) => self.turn(&service.name) % count,
            (Balance::Ewma, _) => {
                let cost = |id: u64| self.latencies.cost(id, self.in_flight(id), ask.now);
                lesser(count, ask.random, |index| cost(from(index).id))
            }
            (Balance::ConsistentHash(by), Some(key)) => {
                let ids = (0..count).map(|index| from(index).id);
                let endpoints: Vec<_> = ids.map(|id| (id, self.in_flight(id))).collect();
                hash::pick(key, &endpoints, by.bound).ok_or(Fault::NoEndpoint)?
            }
            (Balance::LeastRequest | Balance::ConsistentHash(_), _) => {
                lesser(count, ask.random, |index| self.in_flight(from(index).id))
            }
        };
        Ok(from(index))
    }

    fn turn(&mut self, service: &Arc<str>) -> usize {
        let turn = self.turns.entry(service.clone()).or_default();
        *turn = turn.wrapping_add(1);
        *turn - 1
    }
}

/// Of two taken by chance the one with less (the power of two choices, Mitzenmacher 1996).
fn lesser<T: PartialOrd>(count: usize, random: u64, load: impl Fn(usize) -> T) -> usize {
    let first = (random >> 32) as usize % count;
    // Any but the first, each as likely.
    let second = (first + 1 + random as u32 as usize % (count - 1)) % count;
    if load(second) < load(first) { second } else { first }
}

#[cfg(test)]
mod tests;
