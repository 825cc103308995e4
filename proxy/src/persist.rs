//! Turns the snapshot in force into a file, and the file into the first config of the next start.
//!
//! Law: the file is whole or the one of before (write, fsync, rename, fsync of the folder). It is a convenience, not an
//! authority: one that does not build any more is told and left aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use tokio::sync::oneshot;

use crate::shared::Shared;

/// The file `snapshot.json` of the state folder.
pub struct Persist {
    folder: PathBuf,
}

impl Persist {
    /// In this folder, which must be there.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        Self {
            folder: folder.as_ref().to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("snapshot.json")
    }

    /// Replaces the file.
    pub fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        let new = self.folder.join("snapshot.json.new");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, snapshot)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.folder)?.sync_all()
    }

    /// The snapshot of the last run, if there is one.
    pub fn load(&self) -> io::Result<Option<Snapshot>> {
        match File::open(self.path()) {
            Ok(file) => Ok(Some(serde_json::from_reader(BufReader::new(file))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the snapshot of the last run in force; true when it is. Call before anything listens.
    pub fn restore(&self, shared: &Shared) -> bool {
        let put = |snapshot: Snapshot| -> Result<String, Box<dyn std::error::Error>> {
            let revision = snapshot.revision.clone();
            shared.set_config(Config::build(snapshot)?)?;
            Ok(revision)
        };
        let path = self.path();
        match self
            .load()
            .map_err(Into::into)
            .and_then(|found| found.map(put).transpose())
        {
            Ok(Some(revision)) => {
                eprintln!("<6>in force from the last run: snapshot {revision}");
                true
            }
            Ok(None) => false,
            Err(error) => {
                eprintln!("<4>{}: left aside, waiting for the agent: {error}", path.display());
                false
            }
        }
    }
}

/// Saves in a thread of its own: a disk may take seconds, which nobody else shall feel.
pub struct Saver {
    orders: mpsc::Sender<Order>,
}

struct Order {
    snapshot: Snapshot,
    done: oneshot::Sender<io::Result<()>>,
}

impl Saver {
    /// Into this folder.
    pub fn start(persist: Persist) -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::Builder::new().name("saver".to_owned()).spawn(move || {
            for order in queue {
                // Who asked may be gone; the file counts all the same.
                let _gone = order.done.send(persist.save(&order.snapshot));
            }
        })?;
        Ok(Self { orders })
    }

    /// Replaces the file; those that are asked for at once are saved in their order. Carried out whether it is awaited
    /// or not.
    pub fn save(&self, snapshot: Snapshot) -> impl Future<Output = io::Result<()>> + use<> {
        let (done, saved) = oneshot::channel();
        let ordered = self.orders.send(Order { snapshot, done });
        async move {
            let ended = || io::Error::other("the thread that saves has ended");
            ordered.map_err(|_| ended())?;
            saved.await.map_err(|_| ended())?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Authority, snapshot};

    #[test]
    fn saves_are_carried_out_in_their_order_whether_awaited_or_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let saver = Saver::start(Persist::new(folder.path())).expect("a thread");
        let named = |revision: &str| Snapshot {
            revision: revision.into(),
            ..snapshot(&Authority::new())
        };
        drop(saver.save(named("one")));
        let two = saver.save(named("two"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(two).expect("saved");
        let found = Persist::new(folder.path()).load().expect("read").expect("there");
        assert_eq!(found.revision, "two");
        fs::remove_dir_all(folder.path()).expect("removed");
        runtime
            .block_on(saver.save(named("three")))
            .expect_err("no folder, no file");
    }
}
