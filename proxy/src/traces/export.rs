//! Hands what the workers recorded to the collector, batch by batch, for the life of the process.
//!
//! A batch that is not taken is tried again, with growing pauses, for a minute; then it is dropped, and the next has its
//! turn. What is wrong is told once, and shown by the agent until spans arrive again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hostmesh_proxy_core::config::{Config, Traces};
use prost::Message;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::collector::{Collector, Refused};
use super::{Dropped, Finished, SpanSource, otlp};
use crate::shared::Shared;

/// Spans in one request at most.
pub const BATCH: usize = 512;
/// So long the first span of a batch waits for others.
const PACE: Duration = Duration::from_secs(1);
/// The collector's time for one request.
const ANSWER: Duration = Duration::from_secs(5);
/// A batch is tried for so long.
const LIFE: Duration = Duration::from_secs(60);
/// Between its tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// What is left at the end of the process has so long.
const FAREWELL: Duration = Duration::from_secs(2);
/// The trouble's name in [`crate::told::Told`].
const ABOUT: &str = "traces";

/// A request, as long as it is not taken.
struct Batch {
    message: Bytes,
    spans: usize,
    until: Instant,
}

/// One for the process, on the control thread.
pub struct Exporter {
    shared: Arc<Shared>,
    source: SpanSource,
    changes: watch::Receiver<u64>,
    collector: Option<Collector>,
    /// Under way. Whoever stops waiting for it finds it here.
    batch: Option<Batch>,
}

impl Exporter {
    /// Takes spans from `source`.
    pub fn new(shared: Arc<Shared>, source: SpanSource) -> Self {
        Self {
            changes: shared.changes(),
            shared,
            source,
            collector: None,
            batch: None,
        }
    }

    /// Exports until `end`; then what is left, as far as the collector takes it at once.
    pub async fn run(mut self, end: oneshot::Receiver<()>) {
        tokio::select! {
            () = self.export() => {}
            _ = end => {}
        }
        let _late = timeout(FAREWELL, self.flush()).await;
        let under_way = self.batch.map_or(0, |batch| batch.spans);
        let left = under_way + self.source.queue.len();
        self.source.ledger.leave(Dropped::Ended, left);
    }

    async fn export(&mut self) {
        loop {
            let spans = self.source.batch(BATCH, PACE).await;
            self.begin(spans);
            self.deliver().await;
        }
    }

    async fn flush(&mut self) {
        loop {
            if self.batch.is_none() {
                let spans = self.source.take(BATCH);
                if spans.is_empty() {
                    return;
                }
                self.begin(spans);
            }
            if self.attempt().await.is_err() {
                return;
            }
        }
    }

    /// Encodes spans as a batch, which is all that is kept of them.
    fn begin(&mut self, spans: Vec<Finished>) {
        let config = self.shared.config();
        let host = config.as_ref().map_or("", |config| &*config.host);
        self.batch = Some(Batch {
            spans: spans.len(),
            message: otlp::request(spans, host).encode_to_vec().into(),
            until: Instant::now() + LIFE,
        });
    }

    /// Tries the batch until it is taken or dropped.
    async fn deliver(&mut self) {
        let mut pause = PAUSE.0;
        while let Err((why, asked)) = self.attempt().await {
            let Some(batch) = self.batch.take_if(|batch| Instant::now() < batch.until) else {
                return self.give_up(why);
            };
            self.batch = Some(batch);
            let wait = asked.unwrap_or(pause).clamp(pause, PAUSE.1);
            // Other settings may be better ones.
            tokio::select! {
                () = sleep(wait) => pause = (pause * 2).min(PAUSE.1),
                Ok(()) = self.changes.changed() => pause = PAUSE.0,
            }
        }
    }

    fn give_up(&mut self, why: Dropped) {
        if let Some(batch) = self.batch.take() {
            self.source.ledger.leave(why, batch.spans);
        }
    }

    /// One try. `Err`: another may do; why, and when it was asked for.
    async fn attempt(&mut self) -> Result<(), (Dropped, Option<Duration>)> {
        let config = self.shared.config();
        let Some((config, traces)) = config
            .as_ref()
            .and_then(|config| Some((config, config.traces.as_ref()?)))
        else {
            self.collector = None;
            self.give_up(Dropped::Ended);
            self.shared.told.well(ABOUT);
            return Ok(());
        };
        let (Some(batch), collector) = (&self.batch, reach(&mut self.collector, config, traces)) else {
            return Ok(());
        };
        let sent = match timeout(ANSWER, collector.send(&batch.message)).await {
            Ok(sent) => sent.map_err(|refused| (Dropped::Unreachable, refused)),
            Err(_) => {
                collector.hang_up();
                let late = Refused::Later(format!("no answer within {ANSWER:?}"), None);
                Err((Dropped::Timeout, late))
            }
        };
        match sent {
            Ok(rejected) => {
                let rejected = rejected.min(batch.spans);
                self.source.ledger.arrive(batch.spans - rejected);
                self.source.ledger.leave(Dropped::Rejected, rejected);
                self.batch = None;
                match rejected {
                    0 => self.shared.told.well(ABOUT),
                    _ => self.trouble(traces, "it does not want all of them"),
                }
                Ok(())
            }
            Err((_, refused @ Refused::Never(_))) => {
                self.give_up(Dropped::Rejected);
                self.trouble(traces, &refused.to_string());
                Ok(())
            }
            Err((why, refused @ Refused::Later(..))) => {
                self.trouble(traces, &refused.to_string());
                let Refused::Later(_, after) = refused else {
                    return Ok(());
                };
                Err((why, after))
            }
        }
    }

    fn trouble(&self, traces: &Traces, why: &str) {
        let what = format!(
            "spans do not reach the collector {}: {why}. Requests go on; {} spans are kept, the rest is dropped and counted \
             (hostmesh_traces_dropped_total). Mend the collector, or [traces] of /etc/hostmesh/hostmesh.toml",
            traces.endpoint, traces.queue
        );
        self.shared.told.trouble(ABOUT, what);
    }
}

/// The collector of these settings.
fn reach<'a>(known: &'a mut Option<Collector>, config: &Config, traces: &Arc<Traces>) -> &'a mut Collector {
    let same = known.take().filter(|collector| collector.traces == *traces);
    known.insert(same.unwrap_or_else(|| Collector::new(traces.clone(), config.marks.proxy)))
}
