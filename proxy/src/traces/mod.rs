//! Takes spans from the workers to a collector of OTLP, from the control thread.
//!
//! Law: a worker never waits, and nobody waits for the collector. So many spans are kept at most as the settings say,
//! wherever they are on their way; one that finds no place, or that the collector does not take in time, is dropped and
//! counted by its reason.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize, fence};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hostmesh_proxy_core::config::Unit;
use hostmesh_proxy_core::trace::Span;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

mod collector;
pub mod connection;
pub mod export;
mod otlp;

/// Whose side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller's.
    Client,
    /// Of who is called.
    Server,
    /// Neither: a step on the way.
    Internal,
}

impl Kind {
    /// inbound | outbound | local.
    pub fn of(direction: &str) -> Self {
        match direction {
            "outbound" => Self::Client,
            _ => Self::Server,
        }
    }
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(i64),
    /// A word that is always there.
    Word(&'static str),
    /// A text that others have, too.
    Shared(Arc<str>),
    /// A text of its own.
    Text(String),
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<&Arc<str>> for Value {
    fn from(text: &Arc<str>) -> Self {
        Self::Shared(text.clone())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A span that is over.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Of whose traffic.
    pub unit: Arc<Unit>,
    /// Which.
    pub span: Span,
    /// The span above it.
    pub parent: Option<u64>,
    /// Whose side.
    pub kind: Kind,
    /// What it is called: few different ones.
    pub name: Cow<'static, str>,
    /// Nanoseconds since the epoch.
    pub begun_ns: u64,
    /// Nanoseconds since the epoch.
    pub ended_ns: u64,
    /// By the names of OpenTelemetry's semantic conventions, or of ours (`hostmesh.…`).
    pub attributes: Vec<(&'static str, Value)>,
    /// Did it fail? What there is to say to a person of that.
    pub failed: Option<String>,
}

/// When something was, by the wall clock of now.
pub fn since_epoch(at: Instant) -> u64 {
    nanos(SystemTime::now() - at.elapsed())
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Why a span did not reach the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Dropped {
    /// As many wait as may.
    QueueFull,
    /// The collector could not be reached, or said that it cannot now, for too long.
    Unreachable,
    /// It did not answer in time, for too long.
    Timeout,
    /// It does not want them.
    Rejected,
    /// There is no collector any more, or the process ended.
    Ended,
}

const DROPPED: [&str; 5] = ["queue-full", "unreachable", "timeout", "rejected", "ended"];

const NONE: usize = usize::MAX;

/// The workers' end: cheap to clone, never waits.
#[derive(Clone)]
pub struct SpanSink {
    queue: mpsc::UnboundedSender<Finished>,
    ledger: Arc<Ledger>,
}

/// The exporter's end.
pub struct SpanSource {
    queue: mpsc::UnboundedReceiver<Finished>,
    ledger: Arc<Ledger>,
}

/// Which spans are where.
#[derive(Default)]
struct Ledger {
    /// So many may be kept; 0: there is no collector.
    most: AtomicUsize,
    /// So many are kept: in the queue, and on their way to the collector.
    kept: AtomicUsize,
    /// Who queues a span and sees that so many are kept wakes the exporter. [`NONE`]: it does not wait; 0: it has not begun.
    awaited: AtomicUsize,
    wake: Notify,
    exported: AtomicU64,
    dropped: [AtomicU64; DROPPED.len()],
}

/// Nothing is kept before [`SpanSink::keep`].
pub fn queue() -> (SpanSink, SpanSource) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let ledger = Arc::<Ledger>::default();
    (
        SpanSink {
            queue: sender,
            ledger: ledger.clone(),
        },
        SpanSource {
            queue: receiver,
            ledger,
        },
    )
}

impl SpanSink {
    /// Is there a collector? Without one nobody needs to make a span.
    pub fn is_open(&self) -> bool {
        self.ledger.most.load(Relaxed) > 0
    }

    /// From now on so many are kept at most; 0: there is no collector.
    pub fn keep(&self, most: usize) {
        self.ledger.most.store(most, Relaxed);
    }

    /// Queues the span, or counts it as dropped.
    pub fn emit(&self, span: Finished) {
        let ledger = &self.ledger;
        let most = ledger.most.load(Relaxed);
        if most == 0 {
            return;
        }
        if ledger.kept.fetch_add(1, Relaxed) >= most {
            ledger.kept.fetch_sub(1, Relaxed);
            ledger.lose(Dropped::QueueFull, 1);
        } else if self.queue.send(span).is_err() {
            ledger.leave(Dropped::Ended, 1);
        } else {
            fence(SeqCst); // either this sees what is awaited, or who awaits it sees the span
            if ledger.kept.load(Relaxed) >= ledger.awaited.load(Relaxed) {
                ledger.wake.notify_one();
            }
        }
    }

    /// Spans that the collector took, since the start.
    pub fn exported(&self) -> u64 {
        self.ledger.exported.load(Relaxed)
    }

    /// Spans that were dropped since the start, by reason.
    pub fn dropped(&self) -> BTreeMap<String, u64> {
        let counts = DROPPED.iter().zip(&self.ledger.dropped);
        counts
            .map(|(reason, count)| ((*reason).to_owned(), count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

impl SpanSource {
    /// Waits for a first one, then until `limit` of them are there, or half of all that may be kept, `pace` at most; takes
    /// them. Those between the first and the last wake nobody. Call when nothing is kept outside of the queue.
    async fn batch(&mut self, limit: usize, pace: Duration) -> Vec<Finished> {
        self.until_queued(1).await;
        let half = self.ledger.most.load(Relaxed) / 2;
        // Late: those that are there go.
        let _late = timeout(pace, self.until_queued(limit.min(half).max(1))).await;
        self.ledger.awaited.store(NONE, Relaxed);
        let mut spans = Vec::new();
        self.queue.recv_many(&mut spans, limit).await;
        spans
    }

    async fn until_queued(&self, count: usize) {
        self.ledger.awaited.store(count, Relaxed);
        fence(SeqCst);
        while self.queue.len() < count {
            self.ledger.wake.notified().await;
        }
    }

    /// Takes what is there, `limit` at most.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<Finished> {
        std::iter::from_fn(|| self.queue.try_recv().ok()).take(limit).collect()
    }
}

impl Ledger {
    fn lose(&self, why: Dropped, count: usize) {
        self.dropped[why as usize].fetch_add(count as u64, Relaxed);
    }

    /// Spans that were kept are so no more.
    fn leave(&self, why: Dropped, count: usize) {
        self.kept.fetch_sub(count, Relaxed);
        self.lose(why, count);
    }

    /// The collector has these.
    fn arrive(&self, count: usize) {
        self.kept.fetch_sub(count, Relaxed);
        self.exported.fetch_add(count as u64, Relaxed);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
