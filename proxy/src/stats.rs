//! Turns what workers record into exact counters, with nothing shared between workers on the way.
//!
//! Every worker has its own [`WorkerStats`]; a connection asks once for its [`Row`] and records into it with relaxed
//! atomics. Only the control thread reads across workers. The number of rows is bounded: later ones count as `other`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::peer::Reason;

mod collected;
mod row;

pub use collected::{Collected, Flags, TlsFailures, TrafficCount, add_failures, add_flags};
use collected::{add_row, add_row_flags};
pub use row::{BOUNDS_US, CodeClass, Key, Row};

/// Rows (without their code classes) at most; what comes later counts in a row whose names are `other`.
pub const MAX_SERIES: usize = 4096;

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
}

const GAUGES: [&str; 11] = [
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
];

/// One worker's counters.
#[derive(Default)]
struct Shard {
    rows: Mutex<HashMap<Key, Arc<Row>>>,
    denied: Mutex<HashMap<String, u64>>,
    failures: Mutex<TlsFailures>,
    gauges: [AtomicI64; GAUGES.len()],
}

/// The counters of the process.
#[derive(Default)]
pub struct Stats {
    shards: Mutex<Vec<Arc<Shard>>>,
    series: Mutex<HashSet<Key>>,
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
                add_row_flags(&mut flags, row);
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
            denied,
            gauges,
            tls_failures,
            traces_dropped: BTreeMap::new(),
            circuits: BTreeMap::new(),
        }
    }
}

impl WorkerStats {
    /// The row of this key: ask once a connection, keep it.
    pub fn handle(&self, key: Key) -> Arc<Row> {
        let mut rows = lock(&self.shard.rows);
        if let Some(row) = rows.get(&key) {
            return row.clone();
        }
        let key = self.all.admit(key);
        rows.entry(key)
            .or_insert_with_key(|key| Arc::new(Row::new(key.clone())))
            .clone()
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
    fn admit(&self, key: Key) -> Key {
        let mut series = lock(&self.series);
        if series.contains(&key) {
            key
        } else if series.len() < MAX_SERIES {
            series.insert(key.clone());
            key
        } else {
            Key::other(key.direction)
        }
    }
}

/// A poisoned counter is still a counter: nothing here leaves a value half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
