//! Changes the binary under load: a new process takes over what the old one listens on, the old one serves its connections
//! to their end and follows the new one.
//!
//! `launch` starts the new process as a child of the service manager. The socket [`SOCKET`] is of the one that leads:
//! by it a new process takes over (`handover`), and those before it follow (`follow`): config, SVIDs and the stop come to
//! them from there (`lead`), what they counted and saw goes there.
//!
//! Law: until the new one serves, nothing changes for the old one. No listening socket is closed on the way, since
//! connections that wait in one that is closed are reset. Only the one that leads talks to the service manager.

use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::events::Event;
use crate::lookups::Learned;
use crate::memory;
use crate::shared::Shared;

pub mod channel;
pub mod follow;
pub mod handover;
pub mod launch;
pub mod lead;
pub mod sums;

use sums::{Report, Sums};

/// The name of the socket, beside the agent's.
pub const SOCKET: &str = "generations.sock";

/// What generations say to each other. Binaries of different versions do: fields and messages that one does not know it
/// leaves aside, new fields have a default.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// A new process: give me what you have.
    TakeOver,
    /// Either: descriptors of these names come with this message.
    Descriptors {
        /// In the order of the descriptors.
        names: Vec<String>,
    },
    /// The one that leads: that was all.
    Estate {
        /// As the agent sent it; none before the first.
        snapshot: Option<Value>,
        /// The service manager wants to hear of its main process so often.
        watchdog_us: Option<u64>,
        /// What was counted until now.
        #[serde(default)]
        sums: Sums,
        /// What units have looked up.
        #[serde(default)]
        learned: Vec<Learned>,
    },
    /// The new process: I serve.
    Serving,
    /// The one that led: I accept nothing any more, and follow you.
    Retired {
        /// What was counted until now.
        #[serde(default)]
        sums: Sums,
    },
    /// One from before: let me hear.
    Follow(Generation),
    /// The one that leads: make this the configuration in force.
    Snapshot {
        /// As the agent sent it.
        snapshot: Value,
    },
    /// The one that leads: somebody looks at these units.
    Tap {
        /// Until [`crate::tap::LEASE`] is over.
        units: Vec<String>,
    },
    /// The one that leads: finish now, as the service stops.
    Stop,
    /// One that is taken over, or was: units have looked that up. On a connection of its own.
    Learned {
        /// Since the rest was handed over.
        learned: Vec<Learned>,
    },
    /// One from before: my counters, since my start.
    Report(Report),
    /// One from before: what I saw.
    Events {
        /// For the agent.
        events: Vec<Event>,
        /// So many I could not keep.
        dropped: u64,
    },
    /// One from before: what whoever looks on wants to see.
    Tapped {
        /// For the agent.
        events: Vec<Event>,
        /// So many I could not keep.
        dropped: u64,
    },
    /// One from before: I have no more to do, that was my last report.
    Farewell,
    /// The one that leads: I have it.
    Heard,
    /// Of another version.
    #[serde(other)]
    Unknown,
}

/// One process among those that serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation {
    /// Its process.
    pub pid: u32,
    /// When it started, seconds since the epoch.
    pub started: u64,
    /// Its version.
    pub version: String,
}

impl Generation {
    /// This process.
    pub fn this(shared: &Shared) -> Self {
        let started = shared.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            pid: std::process::id(),
            started: started.as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Whoever leads knows what was learned within this, or learns it too late.
const PATIENCE: Duration = Duration::from_secs(2);
/// It is asked for so often while nobody does.
const PAUSE: Duration = Duration::from_millis(20);

/// Has whoever leads know what a unit has looked up, before the unit does.
pub async fn tell_learned(socket: &Path, learned: Vec<Learned>) {
    let message = Message::Learned { learned };
    let told = async {
        while say_learned(socket, &message).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    // Then the unit looks up again.
    let _too_late = timeout(PATIENCE, told).await;
}

async fn say_learned(socket: &Path, message: &Message) -> io::Result<()> {
    let (mut sender, mut receiver) = channel::channel(UnixStream::connect(socket).await?);
    sender.send(message).await?;
    match receiver.receive().await? {
        Message::Heard => Ok(()),
        _ => Err(io::Error::other("it said something else than that it heard")),
    }
}

/// Resident memory of this process, bytes; 0 where `/proc` does not say.
pub fn memory() -> u64 {
    memory::used(memory::Field::Resident).unwrap_or_default()
}

#[cfg(test)]
mod tests;
