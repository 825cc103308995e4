//! Turns what workers record into exact counters, with nothing shared between workers on the way.
//!
//! Every worker has its own [`WorkerStats`]; a connection asks once for its [`Row`] and records into it with relaxed
//! atomics. Only the control thread reads across workers. The number of rows is bounded: later ones count as `other`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::circuits::CircuitCount;
use crate::words::{self, Word};

use crate::peer::Reason;

/// Upper bounds of the histogram's buckets in microseconds, 100 us to 60 s; one more bucket counts the rest.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    20_000_000, 60_000_000,
];

/// Rows (without their code classes) at most; what comes later counts in a row whose names are `other`.
pub const MAX_SERIES: usize = 4096;

/// Rules in the count of refusals at most; what comes later counts as `other`.
pub const MAX_RULES: usize = 4096;

/// What a row of counters is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The unit of this host.
    pub unit: String,
    /// inbound | outbound | local.
    pub direction: &'static str,
    /// SPIFFE ID of the other side, `plaintext` or `passthrough`.
    pub peer: String,
    /// The service called.
    pub service: String,
    /// The port called.
    pub port: u16,
    /// http | tcp | dns …
    pub protocol: &'static str,
}

impl Key {
    fn other(direction: &'static str) -> Self {
        let other = || "other".to_owned();
        Self {
            unit: other(),
            direction,
            peer: other(),
            service: other(),
            port: 0,
            protocol: "other",
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum CodeClass {
    /// HTTP 1xx.
    Informational,
    /// HTTP 2xx.
    Success,
    /// HTTP 3xx.
    Redirect,
    /// HTTP 4xx.
    ClientError,
    /// HTTP 5xx.
    ServerError,
    /// A TCP connection that ended well.
    Ok,
    /// A TCP connection that failed, or a request without an answer.
    Error,
    /// Refused by policy.
    Denied,
}

const CLASSES: [&str; 8] = ["1xx", "2xx", "3xx", "4xx", "5xx", "ok", "error", "denied"];

impl CodeClass {
    /// The class that HTTP has for a status of gRPC (grpc/doc/statuscodes.md): whose doing it was, the caller's or the
    /// server's.
    pub fn of_grpc(status: u16) -> Self {
        match status {
            0 => Self::Success,
            1 | 3 | 5..=7 | 8..=11 | 16 => Self::ClientError,
            _ => Self::ServerError,
        }
    }

    /// Is it nobody's but the server's, or was there no answer?
    pub fn is_failure(self) -> bool {
        matches!(self, Self::ServerError | Self::Error)
    }

    /// The class of an HTTP status; what is none counts as [`CodeClass::Error`].
    pub fn of_status(status: u16) -> Self {
        match status {
            100..=199 => Self::Informational,
            200..=299 => Self::Success,
            300..=399 => Self::Redirect,
            400..=499 => Self::ClientError,
            500..=599 => Self::ServerError,
            _ => Self::Error,
        }
    }
}

#[derive(Default)]
struct Cell {
    count: AtomicU64,
    retries: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    duration_us_sum: AtomicU64,
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
}

/// One row of a worker: a cell for each code class that occurred.
pub struct Row {
    key: Key,
    cells: [OnceLock<Box<Cell>>; CLASSES.len()],
}

impl Row {
    fn new(key: Key) -> Self {
        Self {
            key,
            cells: Default::default(),
        }
    }

    /// Counts one request or connection.
    pub fn record(&self, class: CodeClass, duration_us: u64, bytes_in: u64, bytes_out: u64, retries: u64) {
        let cell = self.cells[class as usize].get_or_init(Box::default);
        cell.count.fetch_add(1, Relaxed);
        cell.duration_us_sum.fetch_add(duration_us, Relaxed);
        cell.buckets[BOUNDS_US.partition_point(|&bound| bound < duration_us)].fetch_add(1, Relaxed);
        for (counter, by) in [
            (&cell.bytes_in, bytes_in),
            (&cell.bytes_out, bytes_out),
            (&cell.retries, retries),
        ] {
            if by != 0 {
                counter.fetch_add(by, Relaxed);
            }
        }
    }
}

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

/// Side (ours: client | server), reason, number.
pub type TlsFailures = BTreeMap<String, BTreeMap<String, u64>>;

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
        let mut denied = BTreeMap::<String, u64>::new();
        let mut gauges = BTreeMap::<String, i64>::new();
        let mut tls_failures = TlsFailures::new();
        let shards = lock(&self.shards).clone();
        for shard in &shards {
            for row in lock(&shard.rows).values() {
                add_row(&mut traffic, row);
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
            denied,
            gauges,
            tls_failures,
            traces_dropped: BTreeMap::new(),
            circuits: BTreeMap::new(),
        }
    }
}

/// Adds what others counted.
pub fn add_failures(sum: &mut TlsFailures, more: &TlsFailures) {
    for (side, reasons) in more {
        let sum = sum.entry(side.clone()).or_default();
        for (reason, count) in reasons {
            *sum.entry(reason.clone()).or_default() += count;
        }
    }
}

fn add_row(traffic: &mut BTreeMap<(Key, usize), TrafficCount>, row: &Row) {
    for (class, cell) in row.cells.iter().enumerate() {
        let Some(cell) = cell.get() else { continue };
        let count = traffic
            .entry((row.key.clone(), class))
            .or_insert_with(|| TrafficCount::new(&row.key, CLASSES[class]));
        count.count += cell.count.load(Relaxed);
        count.retries += cell.retries.load(Relaxed);
        count.bytes_in += cell.bytes_in.load(Relaxed);
        count.bytes_out += cell.bytes_out.load(Relaxed);
        count.duration_us_sum += cell.duration_us_sum.load(Relaxed);
        for (sum, bucket) in count.buckets.iter_mut().zip(&cell.buckets) {
            *sum += bucket.load(Relaxed);
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

/// What [`Stats::collect`] gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Collected {
    /// Rows of traffic.
    pub traffic: Vec<TrafficCount>,
    /// Refusals by rule.
    pub denied: BTreeMap<String, u64>,
    /// Levels by name.
    pub gauges: BTreeMap<String, i64>,
    /// Wire connections that came to nothing or were ended.
    pub tls_failures: TlsFailures,
    /// Spans that did not reach the collector, by reason.
    pub traces_dropped: BTreeMap<String, u64>,
    /// By service, where its policy has a breaker or retries.
    pub circuits: BTreeMap<String, CircuitCount>,
}

/// `TrafficCount` of `hostmesh/wire/proxy_control.py`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are documented at the contract
pub struct TrafficCount {
    pub unit: String,
    #[serde(deserialize_with = "words::known")]
    pub direction: Word,
    pub peer: String,
    pub service: String,
    pub port: u16,
    #[serde(deserialize_with = "words::known")]
    pub protocol: Word,
    #[serde(deserialize_with = "words::known")]
    pub code_class: Word,
    pub count: u64,
    pub retries: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration_us_sum: u64,
    pub buckets: Vec<u64>,
}

impl TrafficCount {
    fn new(key: &Key, code_class: &'static str) -> Self {
        Self {
            unit: key.unit.clone(),
            direction: key.direction,
            peer: key.peer.clone(),
            service: key.service.clone(),
            port: key.port,
            protocol: key.protocol,
            code_class,
            count: 0,
            retries: 0,
            bytes_in: 0,
            bytes_out: 0,
            duration_us_sum: 0,
            buckets: vec![0; BOUNDS_US.len() + 1],
        }
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
