//! Turns what a worker saw into lines for a unit's journal: a bounded queue that never makes a worker wait.
//!
//! Law: an event is delivered to the agent or counted as dropped; none is lost without a count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::words::{self, Word};

/// Events that wait for the agent at most; later ones are dropped and counted.
pub const QUEUE: usize = 8192;

/// Events in one message at most.
pub const BATCH: usize = 256;

/// Something for a unit's journal; the fields of `Event` in `hostmesh/wire/proxy_control.py`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since the epoch.
    pub time_ns: u64,
    /// request | connection | denied | retry | error | wire | token | breaker.
    #[serde(deserialize_with = "words::known")]
    pub kind: Word,
    /// The unit in whose journal this belongs.
    pub unit: String,
    /// inbound | outbound | local.
    #[serde(deserialize_with = "words::known")]
    pub direction: Word,
    /// allow | deny | audit-deny | audit-allow.
    #[serde(deserialize_with = "words::known")]
    pub verdict: Word,
    /// `file:line` of what decided.
    pub rule: String,
    /// SPIFFE ID of the other side, `plaintext` or `passthrough`.
    pub peer: String,
    /// The service that was called.
    pub service: String,
    /// The port that was called.
    pub port: u16,
    /// http | http2 | grpc | tcp | tls | dns.
    #[serde(deserialize_with = "words::known")]
    pub protocol: Word,
    /// One line for a person.
    pub message: String,
    /// Address of the client, empty where it is not known.
    pub client: String,
    /// HTTP method.
    pub method: String,
    /// HTTP path.
    pub path: String,
    /// HTTP status; 0: none.
    pub status: u16,
    /// `grpc-status`, where the answer had one.
    pub grpc_status: Option<u16>,
    /// Tries, from 1.
    pub tries: u32,
    /// Microseconds.
    pub duration_us: u64,
    /// Bytes from the caller.
    pub bytes_in: u64,
    /// Bytes to the caller.
    pub bytes_out: u64,
    /// W3C trace id in hex.
    pub trace_id: String,
    /// W3C span id in hex.
    pub span_id: String,
    /// The route of the service that it took; empty: none fitted.
    #[serde(default)]
    pub route: String,
    /// What was done to it, in one word; empty: nothing.
    #[serde(default, deserialize_with = "words::known")]
    pub flag: Word,
}

impl Event {
    /// An event of now; fill in the rest with struct update syntax.
    pub fn now(kind: &'static str, unit: &str, direction: &'static str, verdict: &'static str) -> Self {
        let time_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        Self {
            time_ns,
            kind,
            unit: unit.to_owned(),
            direction,
            verdict,
            ..Self::default()
        }
    }

    /// A refusal, with the rule that refused.
    pub fn denied(unit: &str, direction: &'static str, rule: &str, message: String) -> Self {
        Self {
            rule: rule.to_owned(),
            message,
            ..Self::now("denied", unit, direction, "deny")
        }
    }

    /// A failure that no policy asked for.
    pub fn error(unit: &str, direction: &'static str, message: String) -> Self {
        Self {
            message,
            ..Self::now("error", unit, direction, "allow")
        }
    }
}

/// The workers' end: cheap to clone, never waits.
#[derive(Clone)]
pub struct EventSink {
    queue: mpsc::Sender<Event>,
    dropped: Arc<Drops>,
}

/// The control thread's end.
pub struct EventSource {
    queue: mpsc::Receiver<Event>,
    dropped: Arc<Drops>,
}

#[derive(Default)]
struct Drops {
    since_batch: AtomicU64,
    total: AtomicU64,
}

/// A queue of [`QUEUE`] events.
pub fn queue() -> (EventSink, EventSource) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let dropped = Arc::new(Drops::default());
    (
        EventSink {
            queue: sender,
            dropped: dropped.clone(),
        },
        EventSource {
            queue: receiver,
            dropped,
        },
    )
}

impl EventSink {
    /// Queues the event, or counts it as dropped.
    pub fn emit(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.dropped.since_batch.fetch_add(1, Ordering::Relaxed);
            self.dropped.total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts events that another process could not keep.
    pub fn count_dropped(&self, count: u64) {
        self.dropped.since_batch.fetch_add(count, Ordering::Relaxed);
    }

    /// Events dropped since the start.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.total.load(Ordering::Relaxed)
    }
}

impl EventSource {
    /// Waits for at least one event, then takes what is there, `limit` at most.
    pub async fn batch(&mut self, limit: usize) -> Vec<Event> {
        let mut events = Vec::new();
        self.queue.recv_many(&mut events, limit).await;
        events
    }

    /// Takes what is there without waiting, until there are `limit` of them.
    pub fn top_up(&mut self, events: &mut Vec<Event>, limit: usize) {
        while events.len() < limit
            && let Ok(event) = self.queue.try_recv()
        {
            events.push(event);
        }
    }

    /// Drops since the last call; reading takes them.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.since_batch.swap(0, Ordering::Relaxed)
    }

    /// Gives a count back that could not be told.
    pub fn put_dropped(&self, count: u64) {
        self.dropped.since_batch.fetch_add(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_counts_exactly_what_it_drops() {
        let (sink, mut source) = queue();
        for _ in 0..QUEUE + 37 {
            sink.emit(Event::error("a.service", "inbound", "x".into()));
        }
        assert_eq!(sink.dropped_total(), 37);
        assert_eq!(source.take_dropped(), 37);
        assert_eq!(source.take_dropped(), 0);
        source.put_dropped(37);
        assert_eq!(source.take_dropped(), 37);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let mut taken = 0;
        while taken < QUEUE {
            let batch = runtime.block_on(source.batch(256));
            assert!(!batch.is_empty() && batch.len() <= 256);
            taken += batch.len();
        }
        assert_eq!(taken, QUEUE);
        sink.emit(Event::default());
        assert_eq!(sink.dropped_total(), 37);
    }
}
