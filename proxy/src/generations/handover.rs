//! Gives what the one that leads has to a new process: sockets, keys, the snapshot.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Message;
use super::channel::{Receiver, Sender, channel};
use super::sums::Sums;
use crate::fdstore::Named;
use crate::lookups::Learned;

/// The new process needs no longer to have all in force. The agent waits meanwhile, and does so for 10 s.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// What is handed over.
pub struct Estate {
    /// Listeners, sockets for names and SVIDs, named as in the fd store; keys without a certificate.
    pub descriptors: Vec<Named>,
    /// As the agent sent it; none before the first.
    pub snapshot: Option<Value>,
    /// The service manager wants to hear of its main process so often.
    pub watchdog: Option<Duration>,
    /// What this process and those before it counted until now.
    pub sums: Sums,
    /// What units have looked up: by it they may call.
    pub learned: Vec<Learned>,
}

/// A new process, seen by the one that leads.
pub struct Successor {
    sender: Sender,
    receiver: Receiver,
}

/// The one that led, seen by the new process.
pub struct Predecessor {
    sender: Sender,
    receiver: Receiver,
}

impl Successor {
    /// Who said that it takes over.
    pub fn new(sender: Sender, receiver: Receiver) -> Self {
        Self { sender, receiver }
    }

    /// Gives it all, and waits until it serves. An error: it does not, and nothing has changed.
    pub async fn install(&mut self, estate: &Estate) -> io::Result<()> {
        let watchdog = estate.watchdog.map(|often| often.as_micros());
        let all = async {
            self.sender.give(&estate.descriptors).await?;
            let rest = Message::Estate {
                snapshot: estate.snapshot.clone(),
                watchdog_us: watchdog.and_then(|us| u64::try_from(us).ok()),
                sums: estate.sums.clone(),
                learned: estate.learned.clone(),
            };
            self.sender.send(&rest).await?;
            match self.receiver.receive().await? {
                Message::Serving => Ok(()),
                _ => Err(io::Error::other("it said something else than that it serves")),
            }
        };
        timeout(PATIENCE, all).await?
    }

    /// Tells it that it is alone with the listeners now, and what was counted since.
    pub async fn retired(mut self, sums: Sums) -> io::Result<()> {
        self.sender.send(&Message::Retired { sums }).await
    }
}

/// Asks the one that leads, if there is one, for all that it has.
pub async fn take_over(socket: &Path) -> io::Result<Option<(Estate, Predecessor)>> {
    let stream = match UnixStream::connect(socket).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        connected => connected?,
    };
    let (mut sender, mut receiver) = channel(stream);
    let all = async {
        sender.send(&Message::TakeOver).await?;
        let mut descriptors = Vec::new();
        loop {
            match receiver.receive().await? {
                Message::Descriptors { names } => descriptors.extend(receiver.descriptors(names)?),
                Message::Estate {
                    snapshot,
                    watchdog_us,
                    sums,
                    learned,
                } => {
                    return Ok::<_, io::Error>(Estate {
                        descriptors,
                        snapshot,
                        watchdog: watchdog_us.map(Duration::from_micros),
                        sums,
                        learned,
                    });
                }
                _ => {}
            }
        }
    };
    let estate = timeout(PATIENCE, all).await;
    let estate = estate.map_err(|_| io::Error::other("the proxy that runs hands nothing over"))??;
    Ok(Some((estate, Predecessor { sender, receiver })))
}

impl Predecessor {
    /// Says that this process serves; returns when the one that led accepts nothing any more, with what was counted.
    pub async fn succeed(mut self) -> io::Result<Sums> {
        self.sender.send(&Message::Serving).await?;
        match timeout(PATIENCE, self.receiver.receive()).await?? {
            Message::Retired { sums } => Ok(sums),
            _ => Err(io::Error::other("it said something else than that it is retired")),
        }
    }
}
