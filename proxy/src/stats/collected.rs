//! What was counted, summed over workers: as the agent is told it, and as one process tells it to the next.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use hostmesh_proxy_core::flag::Flag;
use serde::{Deserialize, Serialize};

use super::exemplar::{Exemplar, add_exemplars};
use super::row::{BOUNDS_US, CLASSES, FlagCounts, Key, Row};
use crate::circuits::CircuitCount;
use crate::words::{self, Word};

/// Unit, service, flag, number.
pub type Flags = BTreeMap<String, BTreeMap<String, BTreeMap<String, u64>>>;

/// Side (ours: client | server), reason, number.
pub type TlsFailures = BTreeMap<String, BTreeMap<String, u64>>;

/// Adds what others counted.
pub fn add_flags(sum: &mut Flags, more: &Flags) {
    for (unit, services) in more {
        add_failures(sum.entry(unit.clone()).or_default(), services);
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

pub(super) fn add_row(traffic: &mut BTreeMap<(Key, usize), TrafficCount>, row: &Row) {
    for (class, cell) in row.cells.iter().enumerate() {
        let Some(cell) = cell.get() else { continue };
        let count = traffic
            .entry((Key::clone(&row.key), class))
            .or_insert_with(|| TrafficCount::new(&row.key, CLASSES[class]));
        count.count += cell.count.load(Relaxed);
        count.retries += cell.retries.load(Relaxed);
        count.bytes_in += cell.bytes_in.load(Relaxed);
        count.bytes_out += cell.bytes_out.load(Relaxed);
        count.duration_us_sum += cell.duration_us_sum.load(Relaxed);
        for (sum, bucket) in count.buckets.iter_mut().zip(&cell.buckets) {
            *sum += bucket.load(Relaxed);
        }
        add_exemplars(&mut count.exemplars, cell.exemplars());
    }
}

pub(super) fn add_flag_counts(sum: &mut Flags, (unit, service): &(String, String), counts: &FlagCounts) {
    for (flag, count) in Flag::ALL.iter().zip(counts) {
        let count = count.load(Relaxed);
        if count > 0 {
            let services = sum.entry(unit.clone()).or_default();
            let words = services.entry(service.clone()).or_default();
            *words.entry(flag.word().to_owned()).or_default() += count;
        }
    }
}

/// What [`super::Stats::collect`] gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Collected {
    /// Rows of traffic.
    pub traffic: Vec<TrafficCount>,
    /// What was done to requests and connections: unit, service, flag, number.
    pub flags: Flags,
    /// What counted as `other` for want of room.
    pub series_dropped: u64,
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
    #[serde(default)]
    pub route: String,
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
    #[serde(default)]
    pub exemplars: Vec<Exemplar>,
}

impl TrafficCount {
    /// Of which row it is.
    pub fn key(&self) -> Key {
        Key {
            unit: self.unit.clone(),
            direction: self.direction,
            peer: self.peer.clone(),
            service: self.service.clone(),
            route: self.route.clone(),
            port: self.port,
            protocol: self.protocol,
        }
    }

    fn new(key: &Key, code_class: &'static str) -> Self {
        Self {
            unit: key.unit.clone(),
            direction: key.direction,
            peer: key.peer.clone(),
            service: key.service.clone(),
            route: key.route.clone(),
            port: key.port,
            protocol: key.protocol,
            code_class,
            count: 0,
            retries: 0,
            bytes_in: 0,
            bytes_out: 0,
            duration_us_sum: 0,
            buckets: vec![0; BOUNDS_US.len() + 1],
            exemplars: Vec::new(),
        }
    }
}
