//! Turns the agent's messages into what is in force, and tells the agent what was seen (`hostmesh/wire/proxy_control.py`).
//!
//! Law: a message is carried out whole or refused with a reason and nothing changed. Workers never wait for this thread,
//! and this thread never waits for an agent longer than a new one needs to take over.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::events::{Event, EventSource, QUEUE};
use crate::identity::SvidStore;
use crate::persist::Saver;
use crate::shared::{Refused, Shared};
use crate::stats::{BOUNDS_US, Gauge, TrafficCount};
use crate::told::{Level, Told};

/// The largest frame either side sends.
pub const MAX_FRAME: usize = 64 * 1024 * 1024;

/// Events in one message at most.
const BATCH: usize = 256;

/// No two messages of events are closer than this, unless the first was full.
const PACE: Duration = Duration::from_millis(100);

/// An agent that takes no byte for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Snapshot { id: i64, snapshot: Box<Snapshot> },
    GetCsr { id: i64, unit: String },
    SetSvid { id: i64, unit: String, chain: Vec<String> },
    GetStatus { id: i64 },
    GetStats { id: i64 },
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
    },
    Stats {
        id: i64,
        bounds_us: &'a [u64],
        traffic: Vec<TrafficCount>,
        denied: BTreeMap<String, u64>,
        gauges: BTreeMap<String, i64>,
    },
    Events {
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

/// What the agent can reach. One for the process, on the control thread.
pub struct Control {
    shared: Arc<Shared>,
    svids: SvidStore,
    saver: Saver,
    source: EventSource,
    waiting: Vec<Event>,
    dropped: u64,
}

/// Listens on `path`, mode 0600; a socket that an earlier run left behind is replaced.
pub fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other(format!("{} is there and no socket", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Control {
    /// Of these parts.
    pub fn new(shared: Arc<Shared>, svids: SvidStore, saver: Saver, source: EventSource) -> Self {
        Self {
            shared,
            svids,
            saver,
            source,
            waiting: Vec::new(),
            dropped: 0,
        }
    }

    /// Serves one agent after the other for ever; the newest that is of `agent_uid` (SO_PEERCRED of unix(7)) takes over.
    pub async fn serve(mut self, listener: std::os::unix::net::UnixListener, agent_uid: u32) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let shared = self.shared.clone();
        let next = || accept(&listener, agent_uid, &shared.told);
        let mut agent = next().await;
        loop {
            agent = tokio::select! {
                newer = next() => newer,
                end = self.attend(agent) => {
                    self.shared
                        .told
                        .say(Level::Info, format_args!("the agent's connection ended: {end}"));
                    next().await
                }
            };
        }
    }

    /// Talks with one agent until its connection ends; gives the reason. May be dropped at any await: what a request puts
    /// in force it puts there between awaits, and events stay in `waiting` until they are written.
    async fn attend(&mut self, mut agent: UnixStream) -> io::Error {
        let (reading, mut writing) = agent.split();
        let mut frames = Frames {
            stream: reading,
            buffer: Vec::new(),
        };
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                frame = frames.next() => match frame {
                    Ok(frame) => self.reply(&frame, &mut writing).await,
                    Err(error) => Err(error),
                },
                // Waits for the first only: who emits the next wakes nobody.
                first = self.source.batch(BATCH), if self.waiting.is_empty() => {
                    self.waiting = first;
                    Ok(())
                }
                _ = pace.tick(), if !self.waiting.is_empty() => self.tell_all(&mut writing).await,
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Tells what is there; what comes meanwhile has its turn at the next pace.
    async fn tell_all(&mut self, agent: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        for _ in 0..=QUEUE / BATCH {
            self.source.top_up(&mut self.waiting, BATCH);
            if self.waiting.is_empty() {
                break;
            }
            self.tell(agent).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, agent: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        self.dropped += self.source.take_dropped();
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
                done.map_or_else(|why| nack(id, why), |()| Answer::Ack { id })
            }
            Request::GetStatus { id } => self.status(id),
            Request::GetStats { id } => self.stats(id),
        }
    }

    async fn put(&mut self, snapshot: Snapshot) -> Result<(), String> {
        let config = Config::build(snapshot.clone()).map_err(|why| why.to_string())?;
        let refused = match self.shared.set_config(config) {
            // What is in force stays; the file is for the restart that this asks for.
            Err(why @ Refused::Listeners) => Some(why.to_string()),
            Err(why) => return Err(why.to_string()),
            Ok(()) => {
                self.svids.reconcile();
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
        }
    }

    fn stats(&self, id: i64) -> Answer<'static> {
        let mut all = self.shared.stats.collect();
        let told = &self.shared.told;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        all.gauges.extend([
            ("events_dropped".to_owned(), number(self.shared.events.dropped_total())),
            ("log_lost".to_owned(), number(told.lost())),
            ("troubles".to_owned(), number(told.all_troubles().len() as u64)),
            ("workers".to_owned(), number(self.shared.workers as u64)),
        ]);
        Answer::Stats {
            id,
            bounds_us: &BOUNDS_US,
            traffic: all.traffic,
            denied: all.denied,
            gauges: all.gauges,
        }
    }
}

/// The next connection of somebody who may speak; others are closed and told in the log.
async fn accept(listener: &UnixListener, agent_uid: u32, told: &Told) -> UnixStream {
    loop {
        let refused = match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(who) if who.uid() == agent_uid => return stream,
                Ok(who) => format!("uid {} is not the agent", who.uid()),
                Err(error) => error.to_string(),
            },
            // No descriptor is left, most likely: waiting is all that helps.
            Err(error) => {
                tokio::time::sleep(PACE).await;
                error.to_string()
            }
        };
        told.say(Level::Warning, format_args!("control connection refused: {refused}"));
    }
}

fn frame(answer: &Answer<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, answer)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::other("an answer is too large for a frame"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

async fn write(agent: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    for part in bytes.chunks(64 * 1024) {
        timeout(PATIENCE, agent.write_all(part))
            .await
            .map_err(|_| io::Error::other("the agent does not read"))??;
    }
    Ok(())
}

/// Frames off a stream; what was read of one that is not complete is kept when the wait for it is dropped.
struct Frames<R> {
    stream: R,
    buffer: Vec<u8>,
}

impl<R: AsyncReadExt + Unpin> Frames<R> {
    async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_FRAME {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a frame of {length} bytes"),
                    ));
                }
                if self.buffer.len() >= 4 + length {
                    let rest = self.buffer.split_off(4 + length);
                    let mut frame = std::mem::replace(&mut self.buffer, rest);
                    frame.drain(..4);
                    return Ok(frame);
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
