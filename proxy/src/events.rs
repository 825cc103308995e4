//! Turns what a worker saw into lines for a unit's journal: a bounded queue that never makes a worker wait.
//!
//! Law: an event is delivered to the agent or counted as dropped; none is lost without a count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::tap::{self, Taps};
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
    /// http | http2 | grpc | tcp | tls | auto (nothing was told yet) | dns.
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
    /// The server that a client of TLS asked for; empty: none that is known.
    #[serde(default)]
    pub sni: String,
    /// What was done to it, in one word; empty: nothing.
    #[serde(default, deserialize_with = "words::known")]
    pub flag: Word,
    /// Where its last try went, `unit on host`; empty: nowhere, or not known here.
    #[serde(default)]
    pub endpoint: String,
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
    /// For the journal.
    pub journal: Sender,
    /// For whoever looks on.
    pub tapped: Sender,
    /// At which units.
    pub taps: Arc<Taps>,
}

/// The control thread's end.
pub struct EventSource {
    /// For the journal.
    pub journal: Receiver,
    /// For whoever looks on.
    pub tapped: Receiver,
}

/// One end of a queue of events.
#[derive(Clone)]
pub struct Sender {
    queue: mpsc::Sender<Event>,
    dropped: Arc<Drops>,
}

/// The other end.
pub struct Receiver {
    queue: mpsc::Receiver<Event>,
    dropped: Arc<Drops>,
}

#[derive(Default)]
struct Drops {
    since_batch: AtomicU64,
    total: AtomicU64,
}

/// A queue of [`QUEUE`] events for the journal, and one of [`tap::QUEUE`] for whoever looks on.
pub fn queue() -> (EventSink, EventSource) {
    let (to_journal, journal) = of_size(QUEUE);
    let (to_taps, tapped) = of_size(tap::QUEUE);
    let sink = EventSink {
        journal: to_journal,
        tapped: to_taps,
        taps: Arc::default(),
    };
    (sink, EventSource { journal, tapped })
}

fn of_size(size: usize) -> (Sender, Receiver) {
    let (queue, receiver) = mpsc::channel(size);
    let dropped = Arc::new(Drops::default());
    let sender = Sender {
        queue,
        dropped: dropped.clone(),
    };
    (
        sender,
        Receiver {
            queue: receiver,
            dropped,
        },
    )
}

impl EventSink {
    /// For the journal, and for whoever looks at its unit.
    pub fn emit(&self, event: Event) {
        if self.taps.include(&event.unit) {
            self.tapped.push(event.clone());
        }
        self.journal.push(event);
    }

    /// The same of what the unit's access log wants, or does not; made only where somebody takes it.
    pub fn record(&self, is_wanted: bool, unit: &str, event: impl FnOnce() -> Event) {
        if is_wanted {
            self.emit(event());
        } else if self.taps.include(unit) {
            self.tapped.push(event());
        }
    }

    /// Events for the journal dropped since the start.
    pub fn dropped_total(&self) -> u64 {
        self.journal.dropped.total.load(Ordering::Relaxed)
    }
}

impl Sender {
    /// Queues the event, or counts it as dropped.
    pub fn push(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.dropped.since_batch.fetch_add(1, Ordering::Relaxed);
            self.dropped.total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts events that another process could not keep.
    pub fn count_dropped(&self, count: u64) {
        self.dropped.since_batch.fetch_add(count, Ordering::Relaxed);
    }
}

impl Receiver {
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

    /// Takes what is there without waiting, `limit` at most, and the count of what was dropped since the last call; `None`:
    /// neither is anything.
    pub fn take(&mut self, limit: usize) -> Option<(Vec<Event>, u64)> {
        let mut events = Vec::new();
        self.top_up(&mut events, limit);
        let dropped = self.take_dropped();
        (!events.is_empty() || dropped > 0).then_some((events, dropped))
    }

    /// Throws away what is there: nobody wants it any more.
    pub fn clear(&mut self) {
        while self.queue.try_recv().is_ok() {}
        self.take_dropped();
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
        assert_eq!(source.journal.take_dropped(), 37);
        assert_eq!(source.journal.take_dropped(), 0);
        source.journal.put_dropped(37);
        assert_eq!(source.journal.take_dropped(), 37);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let mut taken = 0;
        while taken < QUEUE {
            let batch = runtime.block_on(source.journal.batch(256));
            assert!(!batch.is_empty() && batch.len() <= 256);
            taken += batch.len();
        }
        assert_eq!(taken, QUEUE);
        sink.emit(Event::default());
        assert_eq!(sink.dropped_total(), 37);
    }

    #[test]
    fn who_looks_on_gets_a_copy_and_what_the_journal_does_not_want() {
        let (sink, mut source) = queue();
        let made = |message: &str| Event::error("a.service", "inbound", message.into());
        sink.record(false, "a.service", || unreachable!("nobody wants it"));
        sink.taps.watch(["a.service".to_owned()]);
        sink.record(false, "a.service", || made("tapped only"));
        sink.record(false, "b.service", || unreachable!("nobody looks at this unit"));
        sink.record(true, "a.service", || made("both"));
        let (mut tapped, mut journal) = (Vec::new(), Vec::new());
        source.tapped.top_up(&mut tapped, 9);
        source.journal.top_up(&mut journal, 9);
        let messages = |events: &[Event]| events.iter().map(|event| event.message.clone()).collect::<Vec<_>>();
        assert_eq!(messages(&tapped), ["tapped only", "both"]);
        assert_eq!(messages(&journal), ["both"]);
    }

    #[test]
    fn whoever_looks_on_and_takes_nothing_costs_the_journal_nothing() {
        let (sink, mut source) = queue();
        sink.taps.watch(["a.service".to_owned()]);
        for _ in 0..tap::QUEUE + 5 {
            sink.emit(Event::error("a.service", "inbound", "x".into()));
        }
        assert_eq!((source.tapped.take_dropped(), sink.dropped_total()), (5, 0));
        source.tapped.clear();
        let mut left = Vec::new();
        source.tapped.top_up(&mut left, 9);
        assert!(left.is_empty());
    }
}
