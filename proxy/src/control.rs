//! Turns the agent's messages into what is in force, and tells the agent what was seen (`hostmesh/wire/proxy_control.py`).
//!
//! Law: a message is carried out whole or refused with a reason and nothing changed. Workers never wait for this thread,
//! and this thread never waits for an agent longer than a new one needs to take over.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::events::{BATCH, Event, EventSource, QUEUE};
use crate::fdstore::Named;
use crate::frames::{Frames, frame, write};
use crate::generations::follow::Follower;
use crate::generations::handover::Successor;
use crate::generations::lead::{Arrival, Generations, Newcomer};
use crate::generations::sums::{Report, Retired, Sums};
use crate::generations::{Generation, memory};
use crate::identity::SvidStore;
use crate::persist::Saver;
use crate::shared::{Refused, Shared};
use crate::stats::{BOUNDS_US, Collected, Gauge};
use crate::tap;
use crate::told::Level;
use crate::unix_socket::accept;

/// No two messages of events are closer than this, unless the first was full.
const PACE: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Snapshot { id: i64, snapshot: Box<Snapshot> },
    GetCsr { id: i64, unit: String },
    SetSvid { id: i64, unit: String, chain: Vec<String> },
    GetStatus { id: i64 },
    GetStats { id: i64 },
    Tap { id: i64, units: Vec<String> },
}

/// What is left of a request that does not parse: enough to refuse it.
#[derive(Deserialize)]
struct OnlyId {
    id: i64,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Answer<'a> {
    Ack {
        id: i64,
    },
    Nack {
        id: i64,
        reason: String,
    },
    Csr {
        id: i64,
        unit: String,
        csr: String,
    },
    Status {
        id: i64,
        version: &'a str,
        revision: String,
        started: u64,
        workers: usize,
        connections: i64,
        svids: Vec<SvidStatus>,
        troubles: Vec<String>,
        retired: Vec<Retired>,
    },
    Stats {
        id: i64,
        bounds_us: &'a [u64],
        #[serde(flatten)]
        all: Collected,
    },
    Events {
        events: &'a [Event],
        dropped: u64,
    },
    Tapped {
        events: &'a [Event],
        dropped: u64,
    },
}

#[derive(Serialize)]
struct SvidStatus {
    unit: String,
    spiffe_id: String,
    serial: String,
    not_before: u64,
    not_after: u64,
}

/// Why nobody is talked with any more.
enum End {
    Agent(io::Error),
    Successor(Successor),
}

/// What the agent can reach. One for the process, on the control thread.
pub struct Control {
    shared: Arc<Shared>,
    svids: SvidStore,
    saver: Saver,
    source: EventSource,
    generations: Generations,
    waiting: Vec<Event>,
    dropped: u64,
}

impl Control {
    /// Of these parts.
    pub fn new(
        shared: Arc<Shared>,
        svids: SvidStore,
        saver: Saver,
        source: EventSource,
        generations: Generations,
    ) -> Self {
        Self {
            shared,
            svids,
            saver,
            source,
            generations,
            waiting: Vec::new(),
            dropped: 0,
        }
    }

    /// Serves one agent after the other; the newest that is of `agent_uid` (SO_PEERCRED of unix(7)) takes over. Returns
    /// when a new process comes that asks for all.
    pub async fn serve(&mut self, listener: &UnixListener, agent_uid: u32) -> Successor {
        let shared = self.shared.clone();
        let next = || accept(listener, agent_uid, &shared.told);
        let mut agent = None;
        loop {
            agent = tokio::select! {
                newer = next() => Some(newer),
                end = self.attend(agent) => match end {
                    End::Successor(successor) => return successor,
                    End::Agent(why) => {
                        let what = format_args!("the agent's connection ended: {why}");
                        self.shared.told.say(Level::Info, what);
                        None
                    }
                }
            };
        }
    }

    /// Talks with one agent, or waits for none. May be dropped at any await: what a request puts in force it puts there
    /// between awaits, and events stay in `waiting` until they are written.
    async fn attend(&mut self, agent: Option<UnixStream>) -> End {
        let Some(mut agent) = agent else {
            loop {
                match self.generations.next().await {
                    Arrival::Successor(successor) => return End::Successor(successor),
                    Arrival::Newcomer(newcomer) => self.welcome(newcomer).await,
                }
            }
        };
        // Another agent, and nobody has asked it to look at anything.
        self.tap(Vec::new());
        let (reading, mut writing) = agent.split();
        let mut frames = Frames::of(reading);
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                frame = frames.next() => match frame {
                    Ok(frame) => self.reply(&frame, &mut writing).await,
                    Err(error) => Err(error),
                },
                arrival = self.generations.next() => match arrival {
                    Arrival::Successor(successor) => return End::Successor(successor),
                    Arrival::Newcomer(newcomer) => {
                        self.welcome(newcomer).await;
                        Ok(())
                    }
                },
                // Waits for the first only: who emits the next wakes nobody.
                first = self.source.journal.batch(BATCH), if self.waiting.is_empty() => {
                    self.waiting = first;
                    Ok(())
                }
                _ = pace.tick(), if self.has_news() => self.tell_all(&mut writing).await,
            };
            if let Err(error) = done {
                return End::Agent(error);
            }
        }
    }

    /// Brings a process from before to what is in force, and keeps it there.
    async fn welcome(&mut self, newcomer: Newcomer) {
        let in_force = self.in_force().await;
        match in_force.and_then(|(snapshot, svids)| self.generations.lead(newcomer, snapshot, svids)) {
            Ok(()) => {}
            Err(why) => self.shared.told.say(
                Level::Error,
                format_args!("what is in force does not reach a process from before a reload: {why}"),
            ),
        }
    }

    async fn in_force(&mut self) -> io::Result<(Option<Snapshot>, Vec<Named>)> {
        Ok((self.saver.load().await?, self.svids.sealed()?))
    }

    /// What a new process needs of this one, but for the sockets.
    pub async fn estate(&mut self) -> io::Result<(Option<Snapshot>, Vec<Named>)> {
        let (snapshot, mut keys) = self.in_force().await?;
        keys.extend(self.svids.sealed_pending()?);
        Ok((snapshot, keys))
    }

    /// Passes the end of the service on to the processes from before; returns when they have ended.
    pub async fn stop_followers(&mut self) {
        self.generations.stop().await;
    }

    /// Follows the process that has taken over.
    pub fn retire(self, socket: &Path) -> Follower {
        self.source.journal.put_dropped(self.dropped);
        Follower::new(self.shared, self.svids, self.source, self.waiting, socket)
    }

    /// What this process and those before it counted until now.
    pub fn sums(&self) -> Sums {
        let mut sums = self.generations.sums().clone();
        sums.report(&Generation::this(&self.shared), Report::of(&self.shared));
        sums
    }

    /// Tells what is there; what comes meanwhile has its turn at the next pace.
    async fn tell_all(&mut self, agent: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        for _ in 0..=QUEUE / BATCH {
            self.source.journal.top_up(&mut self.waiting, BATCH);
            if self.waiting.is_empty() {
                break;
            }
            self.tell(agent).await?;
        }
        self.show(agent).await
    }

    /// Shows whoever looks on what is there.
    async fn show(&mut self, agent: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        for _ in 0..=tap::QUEUE / BATCH {
            let Some((events, dropped)) = self.source.tapped.take(BATCH) else {
                break;
            };
            let events = &events;
            write(agent, &frame(&Answer::Tapped { events, dropped })?).await?;
        }
        Ok(())
    }

    fn has_news(&self) -> bool {
        !self.waiting.is_empty() || self.shared.events.taps.is_watched()
    }

    async fn tell(&mut self, agent: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        self.dropped += self.source.journal.take_dropped();
        write(
            agent,
            &frame(&Answer::Events {
                events: &self.waiting,
                dropped: self.dropped,
            })?,
        )
        .await?;
        self.waiting.clear();
        self.dropped = 0;
        Ok(())
    }

    /// Carries out one request; an error means that the connection is beyond understanding.
    async fn reply(&mut self, request: &[u8], agent: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        let answer = match serde_json::from_slice(request) {
            Ok(request) => self.carry_out(request).await,
            Err(error) => match serde_json::from_slice(request) {
                Ok(OnlyId { id }) => Answer::Nack {
                    id,
                    reason: format!("not understood: {error}"),
                },
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("not understood: {error}"),
                    ));
                }
            },
        };
        if let Answer::Nack { reason, .. } = &answer {
            self.shared.told.say(Level::Warning, format_args!("refused: {reason}"));
        }
        write(agent, &frame(&answer)?).await
    }

    async fn carry_out(&mut self, request: Request) -> Answer<'static> {
        let nack = |id, reason: String| Answer::Nack { id, reason };
        match request {
            Request::Snapshot { id, snapshot } => self
                .put(*snapshot)
                .await
                .map_or_else(|why| nack(id, why), |()| Answer::Ack { id }),
            Request::GetCsr { id, unit } => match self.svids.request(&unit) {
                Ok(csr) => Answer::Csr {
                    id,
                    unit,
                    csr: BASE64.encode(csr),
                },
                Err(why) => nack(id, why.to_string()),
            },
            Request::SetSvid { id, unit, chain } => {
                let chain: Result<Vec<_>, _> = chain.iter().map(|der| BASE64.decode(der)).collect();
                let done = chain.map_err(|why| format!("the chain is not base64: {why}"));
                let done = done.and_then(|chain| self.svids.set(&unit, chain).map_err(|why| why.to_string()));
                if done.is_ok() {
                    self.generations.tell_svids(|| self.svids.sealed_of(&unit));
                }
                done.map_or_else(|why| nack(id, why), |()| Answer::Ack { id })
            }
            Request::GetStatus { id } => self.status(id),
            Request::GetStats { id } => self.stats(id),
            Request::Tap { id, units } => {
                self.tap(units);
                Answer::Ack { id }
            }
        }
    }

    fn tap(&mut self, units: Vec<String>) {
        let taps = &self.shared.events.taps;
        taps.look(units.iter().cloned(), &mut self.source.tapped);
        self.generations.tell_tap(units);
    }

    async fn put(&mut self, snapshot: Snapshot) -> Result<(), String> {
        // Of many units it takes its time, and this thread feeds the watchdog.
        let (snapshot, built) = spawn_blocking(move || (snapshot.clone(), Config::build(snapshot)))
            .await
            .map_err(|why| why.to_string())?;
        let config = built.map_err(|why| why.to_string())?;
        let refused = match self.shared.set_config(config) {
            // What is in force stays; the file is for the restart that this asks for.
            Err(why @ Refused::Listeners) => Some(why.to_string()),
            Err(why) => return Err(why.to_string()),
            Ok(()) => {
                self.svids.reconcile();
                self.generations.tell_snapshot(&snapshot);
                None
            }
        };
        self.saver.save(snapshot).await.map_err(|why| why.to_string())?;
        refused.map_or(Ok(()), Err)
    }

    fn status(&self, id: i64) -> Answer<'static> {
        let svids = self.shared.svids();
        let mut svids: Vec<_> = svids
            .iter()
            .map(|svid| SvidStatus {
                unit: svid.unit.clone(),
                spiffe_id: svid.spiffe_id.clone(),
                serial: svid.serial.clone(),
                not_before: svid.not_before,
                not_after: svid.not_after,
            })
            .collect();
        svids.sort_by(|one, other| one.unit.cmp(&other.unit));
        Answer::Status {
            id,
            version: env!("CARGO_PKG_VERSION"),
            revision: self
                .shared
                .config()
                .map(|config| config.revision.clone())
                .unwrap_or_default(),
            started: self
                .shared
                .started
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            workers: self.shared.workers,
            connections: self.shared.stats.gauge(Gauge::Connections),
            svids,
            troubles: self.shared.told.all_troubles(),
            retired: self.generations.sums().there(),
        }
    }

    fn stats(&self, id: i64) -> Answer<'static> {
        if let Some(config) = self.shared.config() {
            self.generations.expire(config.expire_series);
        }
        let series = &self.shared.stats.series;
        let mut all = self.shared.counts();
        let sums = self.generations.sums();
        sums.add_to(&mut all);
        let there = sums.there();
        let of_all: u64 = there.iter().map(|retired| retired.memory_bytes).sum();
        let told = &self.shared.told;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        all.gauges.extend([
            ("generations".to_owned(), number(1 + there.len() as u64)),
            ("series".to_owned(), number(series.count() as u64)),
            ("max_series".to_owned(), number(series.most() as u64)),
            ("memory_bytes".to_owned(), number(of_all + memory())),
            ("troubles".to_owned(), number(told.all_troubles().len() as u64)),
            ("workers".to_owned(), number(self.shared.workers as u64)),
        ]);
        Answer::Stats {
            id,
            bounds_us: &BOUNDS_US,
            all,
        }
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
