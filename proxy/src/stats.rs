//! Turns what workers record into exact counters, with nothing shared between workers on the way.
//!
//! Every worker has its own [`WorkerStats`]; a connection asks once for its [`Row`] and records into it with relaxed
//! atomics. Only the control thread reads across workers. How many
//! series there may be [`Series`] knows: later ones count as `other`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::peer::Reason;

mod collected;
mod exemplar;
mod row;
mod series;

pub use collected::{Collected, Flags, TlsFailures, TrafficCount, add_failures, add_flags};
use collected::{add_flag_counts, add_row};
pub use exemplar::add_exemplars;
use row::FlagCounts;
pub use row::{BOUNDS_US, CodeClass, Key, Row};
pub use series::Series;

/// Rules in the count of refusals at most; what comes later counts as `other`.
pub const MAX_RULES: usize = 4096;

/// Process-wide levels, summed over the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Gauge {
    /// Accepted connections that are open.
    Connections,
    /// Open streams of the wire.
    Streams,
    /// TLS connections in the pools.
    Pooled,
    /// TLS handshakes done since the start.
    TlsHandshakes,
    /// DNS queries answered since the start.
    DnsAnswered,
    /// DNS queries passed on since the start.
    DnsForwarded,
    /// DNS queries refused or failed since the start.
    DnsFailed,
    /// HTTP clients cut off since the start because they were too slow.
    SlowClients,
    /// Connections of the wire ended since the start because their peer broke the rules of HTTP/2.
    WireViolations,
    /// Copies for mirrors sent since the start.
    Mirrored,
    /// Copies left out since the start: too many under way, or nowhere to go.
    MirrorDropped,
    /// Connections that left one worker for another since the start.
    Moved,
}

const GAUGES: [&str; 12] = [
    "connections",
    "streams",
    "pooled",
    "tls_handshakes",
    "dns_answered",
    "dns_forwarded",
    "dns_failed",
    "slow_clients",
    "wire_violations",
    "mirrored",
    "mirror_dropped",
    "moved",
];

/// One worker's counters.
#[derive(Default)]
struct Shard {
    rows: Mutex<HashMap<Arc<Key>, Arc<Row>>>,
    /// By unit and service.
    flags: Mutex<HashMap<(String, String), Arc<FlagCounts>>>,
    denied: Mutex<HashMap<String, u64>>,
    failures: Mutex<TlsFailures>,
    gauges: [AtomicI64; GAUGES.len()],
}

/// The counters of the process.
#[derive(Default)]
pub struct Stats {
    shards: Mutex<Vec<Arc<Shard>>>,
    /// How many there may be.
    pub series: Arc<Series>,
    rules: Mutex<HashSet<String>>,
}

/// A worker's own door to the counters. Not shared between workers: ask for one each.
#[derive(Clone)]
pub struct WorkerStats {
    all: Arc<Stats>,
    shard: Arc<Shard>,
}

/// Holds a gauge one up while it lives.
pub struct Held {
    shard: Arc<Shard>,
    gauge: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shard.gauges[self.gauge as usize].fetch_sub(1, Relaxed);
    }
}

impl Stats {
    /// Empty counters.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A new worker's counters.
    pub fn worker(self: &Arc<Self>) -> WorkerStats {
        let shard = Arc::<Shard>::default();
        lock(&self.shards).push(shard.clone());
        WorkerStats {
            all: self.clone(),
            shard,
        }
    }

    /// One gauge, summed over the workers.
    pub fn gauge(&self, gauge: Gauge) -> i64 {
        lock(&self.shards)
            .iter()
            .map(|shard| shard.gauges[gauge as usize].load(Relaxed))
            .sum()
    }

    /// All counters: rows sorted by key, refusals by rule, gauges by name, TLS failures by side and reason.
    pub fn collect(&self) -> Collected {
        let mut traffic = BTreeMap::<(Key, usize), TrafficCount>::new();
        let mut flags = Flags::new();
        let mut denied = BTreeMap::<String, u64>::new();
        let mut gauges = BTreeMap::<String, i64>::new();
        let mut tls_failures = TlsFailures::new();
        let shards = lock(&self.shards).clone();
        for shard in &shards {
            for row in lock(&shard.rows).values() {
                add_row(&mut traffic, row);
            }
            for (key, counts) in lock(&shard.flags).iter() {
                add_flag_counts(&mut flags, key, counts);
            }
            for (rule, count) in lock(&shard.denied).iter() {
                *denied.entry(rule.clone()).or_default() += count;
            }
            add_failures(&mut tls_failures, &lock(&shard.failures));
            for (name, value) in GAUGES.iter().zip(&shard.gauges) {
                *gauges.entry((*name).to_owned()).or_default() += value.load(Relaxed);
            }
        }
        Collected {
            traffic: traffic.into_values().collect(),
            flags,
            series_dropped: self.series.dropped(),
            denied,
            gauges,
            tls_failures,
            traces_dropped: BTreeMap::new(),
            circuits: BTreeMap::new(),
        }
    }
}

impl WorkerStats {
    /// The row of this key: ask once a connection, keep it as long as that lasts.
    pub fn handle(&self, key: Key) -> Arc<Row> {
        let mut rows = lock(&self.shard.rows);
        if let Some(row) = rows.get(&key) {
            return row.clone();
        }
        let other = Key::other(key.direction);
        let other = match rows.get(&other) {
            Some(other) => other.clone(),
            None => self.open(&mut rows, other, None),
        };
        if rows.len() > self.all.series.most() {
            self.all.series.drop_one();
            return other;
        }
        self.open(&mut rows, key, Some(other))
    }

    fn open(&self, rows: &mut HashMap<Arc<Key>, Arc<Row>>, key: Key, other: Option<Arc<Row>>) -> Arc<Row> {
        let flags = self.flag_counts(&key);
        let key = Arc::new(key);
        let row = Arc::new(Row::new(key.clone(), flags, self.all.series.clone(), other));
        rows.insert(key, row.clone());
        row
    }

    fn flag_counts(&self, key: &Key) -> Arc<FlagCounts> {
        let mut flags = lock(&self.shard.flags);
        let mut of = (key.unit.clone(), key.service.clone());
        if flags.len() >= self.all.series.most() && !flags.contains_key(&of) {
            of = ("other".to_owned(), "other".to_owned());
        }
        let none = || Arc::new([const { AtomicU64::new(0) }; _]);
        flags.entry(of).or_insert_with(none).clone()
    }

    /// Counts a refusal by the rule that refused.
    pub fn denied(&self, rule: &str) {
        let mut denied = lock(&self.shard.denied);
        if let Some(count) = denied.get_mut(rule) {
            *count += 1;
            return;
        }
        let mut rules = lock(&self.all.rules);
        let known = rules.contains(rule) || (rules.len() < MAX_RULES && rules.insert(rule.to_owned()));
        *denied
            .entry(if known { rule.to_owned() } else { "other".to_owned() })
            .or_default() += 1;
    }

    /// Counts a TLS connection that came to nothing or was ended. side: client | server, which is ours.
    pub fn tls_failure(&self, side: &'static str, reason: Reason) {
        let mut failures = lock(&self.shard.failures);
        let reasons = failures.entry(side.to_owned()).or_default();
        *reasons.entry(reason.as_str().to_owned()).or_default() += 1;
    }

    /// Moves a gauge.
    pub fn add(&self, gauge: Gauge, by: i64) {
        self.shard.gauges[gauge as usize].fetch_add(by, Relaxed);
    }

    /// Moves a gauge up until the returned value is dropped.
    pub fn hold(&self, gauge: Gauge) -> Held {
        self.add(gauge, 1);
        Held {
            shard: self.shard.clone(),
            gauge,
        }
    }
}

impl Stats {
    /// Ends the series of those that were quiet for so long, which no connection has and which are not `kept`. They vanish:
    /// to add their counts to `other` would look like traffic. Whose they were.
    pub fn expire(&self, after: Duration, now: Instant, kept: impl Fn(&Key) -> bool) -> HashSet<Arc<Key>> {
        let shards = lock(&self.shards).clone();
        // All at once: nobody takes a row between the look at it and its end.
        let mut rows: Vec<_> = shards.iter().map(|shard| lock(&shard.rows)).collect();
        let known = rows.iter().flat_map(|rows| rows.iter()).filter(|(key, _)| !kept(key));
        let over = self.series.expire(known, after, now);
        for rows in &mut rows {
            rows.retain(|key, _| !over.contains(key));
        }
        over
    }
}

/// A poisoned counter is still a counter: nothing here leaves a value half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
