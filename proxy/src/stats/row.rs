//! One row of a worker's counters: what went between two, by how it ended.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use hostmesh_proxy_core::flag::Flag;

use super::exemplar::{Exemplar, Slot};
use super::series::Series;

/// Upper bounds of the histogram's buckets in microseconds, 100 us to 60 s; one more bucket counts the rest.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    20_000_000, 60_000_000,
];

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
    /// The route of its policy that was taken, seen from the caller's side; empty: none.
    pub route: String,
    /// The port called.
    pub port: u16,
    /// http | tcp | dns …
    pub protocol: &'static str,
}

impl Key {
    pub(super) fn other(direction: &'static str) -> Self {
        let other = || "other".to_owned();
        Self {
            unit: other(),
            direction,
            peer: other(),
            service: other(),
            route: other(),
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

pub(super) const CLASSES: [&str; 8] = ["1xx", "2xx", "3xx", "4xx", "5xx", "ok", "error", "denied"];

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
pub(super) struct Cell {
    pub(super) count: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) duration_us_sum: AtomicU64,
    pub(super) buckets: [AtomicU64; BOUNDS_US.len() + 1],
    exemplars: OnceLock<Box<[Slot; BOUNDS_US.len() + 1]>>,
}

impl Cell {
    /// The last traces, by bucket.
    pub(super) fn exemplars(&self) -> impl Iterator<Item = Exemplar> {
        let slots = self.exemplars.get().into_iter().flat_map(|slots| slots.iter());
        slots.enumerate().filter_map(|(bucket, slot)| slot.get(bucket))
    }
}

/// What was done, by flag: of all rows of a unit and a service in a worker.
pub(super) type FlagCounts = [AtomicU64; Flag::ALL.len()];

/// One that was counted.
pub struct Counted<'a> {
    cell: &'a Cell,
    bucket: usize,
    duration_us: u64,
}

impl Counted<'_> {
    /// Keeps its trace.
    pub fn exemplify(&self, trace_id: u128) {
        let slots = self.cell.exemplars.get_or_init(Box::default);
        slots[self.bucket].set(trace_id, self.duration_us);
    }
}

/// One row of a worker: a cell for each code class that occurred.
pub struct Row {
    pub(super) key: Arc<Key>,
    pub(super) cells: [OnceLock<Box<Cell>>; CLASSES.len()],
    flags: Arc<FlagCounts>,
    series: Arc<Series>,
    /// Where there was no room, by code class ([`Series::admit`]).
    refused: [AtomicU64; CLASSES.len()],
    /// Where it counts what there is no room for; `None`: this is that one.
    other: Option<Arc<Self>>,
}

impl Row {
    pub(super) fn new(key: Arc<Key>, flags: Arc<FlagCounts>, series: Arc<Series>, other: Option<Arc<Self>>) -> Self {
        Self {
            key,
            cells: Default::default(),
            flags,
            series,
            refused: Default::default(),
            other,
        }
    }

    /// Does it count what took this route?
    pub fn is_of(&self, route: &str) -> bool {
        self.key.route == route
    }

    /// Counts that this was done to one of them.
    pub fn flagged(&self, flag: Flag) {
        self.flags[flag as usize].fetch_add(1, Relaxed);
    }

    /// Counts one request or connection.
    pub fn record(
        &self,
        class: CodeClass,
        duration_us: u64,
        bytes_in: u64,
        bytes_out: u64,
        retries: u64,
    ) -> Counted<'_> {
        let (cell, bucket) = (self.cell(class), bucket(duration_us));
        cell.count.fetch_add(1, Relaxed);
        cell.duration_us_sum.fetch_add(duration_us, Relaxed);
        cell.buckets[bucket].fetch_add(1, Relaxed);
        for (counter, by) in [
            (&cell.bytes_in, bytes_in),
            (&cell.bytes_out, bytes_out),
            (&cell.retries, retries),
        ] {
            if by != 0 {
                counter.fetch_add(by, Relaxed);
            }
        }
        Counted {
            cell,
            bucket,
            duration_us,
        }
    }

    /// All that it counted.
    pub(super) fn count(&self) -> u64 {
        let cells = self.cells.iter().filter_map(OnceLock::get);
        cells.map(|cell| cell.count.load(Relaxed)).sum()
    }

    fn cell(&self, class: CodeClass) -> &Cell {
        match self.cells[class as usize].get() {
            Some(cell) => cell,
            None => self.open(class),
        }
    }

    fn open(&self, class: CodeClass) -> &Cell {
        match &self.other {
            Some(other) if !self.series.admit(&self.key, class, &self.refused[class as usize]) => other.open(class),
            _ => self.cells[class as usize].get_or_init(Box::default),
        }
    }
}

fn bucket(duration_us: u64) -> usize {
    BOUNDS_US.partition_point(|&bound| bound < duration_us)
}
