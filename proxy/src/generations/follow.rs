//! The side of a process that was taken over: it serves the connections that it has, by what the one that leads puts in
//! force.
//!
//! Law: it accepts nothing, and never leads again. Where nobody leads, it goes on with what it has and asks again; a
//! snapshot that it does not understand ends it, since it would go on by a policy that is over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::channel::{Receiver, Sender, channel};
use super::sums::Report;
use super::{Generation, Message};
use crate::events::{BATCH, Event, EventSource, QUEUE};
use crate::fdstore::Inherited;
use crate::identity::SvidStore;
use crate::shared::Shared;
use crate::tap;

/// Whoever leads is asked for so often while nobody does.
const PAUSE: Duration = Duration::from_millis(100);
/// What was seen and counted is told so often.
const PACE: Duration = Duration::from_millis(250);
/// The last of it is told within this.
const FAREWELL: Duration = Duration::from_secs(3);

/// What a process that was taken over hears and is heard by.
pub struct Follower {
    shared: Arc<Shared>,
    svids: SvidStore,
    source: EventSource,
    /// Events that are not told yet.
    waiting: Vec<Event>,
    /// Those that are being told. If the connection ends meanwhile, whoever leads next hears them, perhaps again.
    telling: Option<Message>,
    /// What was reported last.
    reported: Report,
    /// Whoever leads waits for the end of this connection while the service stops.
    stopping: Option<Sender>,
    socket: PathBuf,
}

/// Why it finishes.
enum End {
    /// The service stops.
    Stop,
    /// It cannot follow any more.
    Lost(String),
}

impl Follower {
    /// Of these parts.
    pub fn new(shared: Arc<Shared>, svids: SvidStore, source: EventSource, waiting: Vec<Event>, socket: &Path) -> Self {
        Self {
            shared,
            svids,
            source,
            waiting,
            telling: None,
            reported: Report::default(),
            stopping: None,
            socket: socket.to_owned(),
        }
    }

    /// Follows whoever leads until it is to finish; says why.
    pub async fn follow(&mut self) -> String {
        loop {
            // A connection that ends is no reason: whoever leads may have crashed, or have a successor.
            if let Ok(stream) = UnixStream::connect(&self.socket).await
                && let Err(end) = self.attend(stream).await
            {
                match end {
                    End::Stop => return "the service stops".to_owned(),
                    End::Lost(why) => return why,
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attend(&mut self, stream: UnixStream) -> Result<(), End> {
        let (mut sender, mut receiver) = channel(stream);
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = sender.send(&Message::Follow(Generation::this(&self.shared))).await;
        // Whoever leads now has not heard it.
        self.reported = Report::default();
        while said.is_ok() {
            tokio::select! {
                heard = receiver.receive() => match heard {
                    Ok(Message::Stop) => {
                        self.stopping = Some(sender);
                        return Err(End::Stop);
                    }
                    Ok(message) => self.take(message, &mut receiver)?,
                    Err(_ended) => return Ok(()),
                },
                _ = pace.tick() => said = self.tell(&mut sender).await,
            }
        }
        Ok(())
    }

    /// Tells what was seen and counted since the last time.
    pub(super) async fn tell(&mut self, sender: &mut Sender) -> io::Result<()> {
        for _ in 0..=QUEUE / BATCH {
            self.telling = self.telling.take().or_else(|| self.seen());
            let Some(message) = &self.telling else { break };
            sender.send(message).await?;
            self.telling = None;
        }
        if self.shared.events.taps.is_watched() {
            self.show(sender).await?;
        }
        let report = Report::of(&self.shared);
        if report != self.reported {
            self.reported = report.clone();
            sender.send(&Message::Report(report)).await?;
        }
        Ok(())
    }

    /// Shows whoever looks on what is there.
    async fn show(&mut self, sender: &mut Sender) -> io::Result<()> {
        for _ in 0..=tap::QUEUE / BATCH {
            let Some((events, dropped)) = self.source.tapped.take(BATCH) else {
                break;
            };
            sender.send(&Message::Tapped { events, dropped }).await?;
        }
        Ok(())
    }

    /// What was seen, and is not told yet.
    fn seen(&mut self) -> Option<Message> {
        self.source.journal.top_up(&mut self.waiting, BATCH);
        let dropped = self.source.journal.take_dropped();
        let events = std::mem::take(&mut self.waiting);
        (!events.is_empty() || dropped > 0).then_some(Message::Events { events, dropped })
    }

    /// Tells the last of it to whoever leads. Call when nothing is counted any more.
    pub async fn say_farewell(&mut self) -> io::Result<()> {
        if let Some(mut sender) = self.stopping.take() {
            self.tell(&mut sender).await?;
            return sender.send(&Message::Farewell).await;
        }
        let farewell = async {
            loop {
                match self.try_farewell().await {
                    Ok(()) => return,
                    // Nobody leads, or somebody who is about to be followed by another.
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        Ok(timeout(FAREWELL, farewell).await?)
    }

    async fn try_farewell(&mut self) -> io::Result<()> {
        let (mut sender, mut receiver) = channel(UnixStream::connect(&self.socket).await?);
        sender.send(&Message::Follow(Generation::this(&self.shared))).await?;
        self.reported = Report::default();
        self.tell(&mut sender).await?;
        sender.send(&Message::Farewell).await?;
        while !matches!(receiver.receive().await?, Message::Heard) {}
        Ok(())
    }

    fn take(&mut self, message: Message, receiver: &mut Receiver) -> Result<(), End> {
        match message {
            Message::Snapshot { snapshot } => self.put(snapshot).map_err(|why| {
                End::Lost(format!(
                    "this binary does not understand the policy in force, and must not go on by another: {why}"
                ))
            }),
            Message::Descriptors { names } => {
                if let Ok(svids) = receiver.descriptors(names) {
                    self.svids.restore(&Inherited::of(svids));
                }
                Ok(())
            }
            Message::Tap { units } => {
                self.shared.events.taps.look(units, &mut self.source.tapped);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn put(&mut self, snapshot: Value) -> Result<(), Box<dyn std::error::Error>> {
        let mut snapshot: Snapshot = serde_json::from_value(snapshot)?;
        if let Some(config) = self.shared.config() {
            // This process listens nowhere any more.
            snapshot.listeners = config.listeners;
            if config.revision == snapshot.revision {
                return Ok(());
            }
        }
        self.shared.set_config(Config::build(snapshot)?)?;
        self.svids.reconcile();
        Ok(())
    }
}
