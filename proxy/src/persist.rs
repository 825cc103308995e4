//! Turns the snapshot in force into a file, and the file into the first config of the next start.
//!
//! Law: the file is whole or the one of before (write, fsync, rename, fsync of the folder). It is a convenience, not an
//! authority: one that does not build any more is told and left aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use tokio::sync::oneshot;

use crate::shared::Shared;
use crate::told::{Level, Told};

/// The trouble's name in [`Told`].
const ABOUT: &str = "disk";

/// A disk that did not take the snapshot is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);

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

    /// Replaces the file. What was written of one that did not get whole is removed: the disk may be full of it.
    pub fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        let new = self.folder.join("snapshot.json.new");
        let done = self.replace(&new, snapshot);
        if done.is_err() {
            // Where that fails too, the next save begins with an empty file.
            let _left = fs::remove_file(&new);
        }
        done
    }

    fn replace(&self, new: &Path, snapshot: &Snapshot) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(new)?;
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, snapshot)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(new, self.path())?;
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
                let what = format_args!("in force from the last run: snapshot {revision}");
                shared.told.say(Level::Info, what);
                true
            }
            Ok(None) => false,
            Err(error) => {
                let what = format_args!("{}: left aside, waiting for the agent: {error}", path.display());
                shared.told.say(Level::Warning, what);
                false
            }
        }
    }
}

/// Saves in a thread of its own: a disk may take seconds, which nobody else shall feel. A disk that is full or read-only
/// is told, and tried again until it takes what is in force.
pub struct Saver {
    orders: mpsc::Sender<Order>,
}

enum Order {
    Save(Box<Snapshot>, oneshot::Sender<()>),
    Load(oneshot::Sender<io::Result<Option<Snapshot>>>),
}

fn ended() -> io::Error {
    io::Error::other("the thread that saves has ended")
}

impl Saver {
    /// Into this folder. `unsaved`: what is in force, if the disk may not have it.
    pub fn start(persist: Persist, shared: Arc<Shared>, unsaved: Option<Snapshot>) -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("saver".to_owned())
            .spawn(move || keep_saving(&persist, &queue, &shared.told, unsaved))?;
        Ok(Self { orders })
    }

    /// Replaces the file; those that are asked for at once are saved in their order. Carried out whether it is awaited
    /// or not; ends when it was tried.
    pub fn save(&self, snapshot: Snapshot) -> impl Future<Output = io::Result<()>> + use<> {
        let (tried, was_tried) = oneshot::channel();
        let ordered = self.orders.send(Order::Save(Box::new(snapshot), tried));
        async move {
            ordered.map_err(|_| ended())?;
            was_tried.await.map_err(|_| ended())
        }
    }

    /// The last one that was to be saved, whether the disk took it or not.
    pub async fn load(&self) -> io::Result<Option<Snapshot>> {
        let (give, given) = oneshot::channel();
        self.orders.send(Order::Load(give)).map_err(|_| ended())?;
        given.await.map_err(|_| ended())?
    }
}

fn keep_saving(persist: &Persist, queue: &mpsc::Receiver<Order>, told: &Told, mut unsaved: Option<Snapshot>) {
    loop {
        let order = match unsaved {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => queue.recv_timeout(AGAIN),
        };
        let (snapshot, tried) = match order {
            Ok(Order::Save(snapshot, tried)) => (*snapshot, Some(tried)),
            Ok(Order::Load(give)) => {
                // Who asked may be gone.
                let _gone = give.send(unsaved.clone().map_or_else(|| persist.load(), |kept| Ok(Some(kept))));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => match unsaved.take() {
                Some(snapshot) => (snapshot, None),
                None => continue,
            },
        };
        unsaved = match persist.save(&snapshot) {
            Ok(()) => {
                told.well(ABOUT);
                None
            }
            Err(error) => {
                told.trouble(
                    ABOUT,
                    format!(
                        "the policy in force is not on disk: {}: {error}. A restart without an agent would begin with the \
                         one of before. Free space there, or make it writable (df {}): it is tried again every {AGAIN:?}",
                        persist.path().display(),
                        persist.folder.display()
                    ),
                );
                Some(snapshot)
            }
        };
        // Who asked may be gone; the file counts all the same.
        let _gone = tried.map(|tried| tried.send(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Authority, shared, snapshot};

    fn named(revision: &str) -> Snapshot {
        Snapshot {
            revision: revision.into(),
            ..snapshot(&Authority::new())
        }
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(future)
    }

    fn revision(folder: &Path) -> String {
        Persist::new(folder).load().expect("read").expect("there").revision
    }

    #[test]
    fn saves_are_carried_out_in_their_order_whether_awaited_or_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let saver = Saver::start(Persist::new(folder.path()), shared().0, None).expect("a thread");
        drop(saver.save(named("one")));
        wait(saver.save(named("two"))).expect("tried");
        assert_eq!(revision(folder.path()), "two");
        assert_eq!(wait(saver.load()).expect("read").expect("there").revision, "two");
    }

    #[test]
    fn what_was_taken_over_is_in_force_whatever_the_disk_has() {
        let folder = tempfile::tempdir().expect("a folder");
        Persist::new(folder.path()).save(&named("before")).expect("saved");
        let saver = Saver::start(Persist::new(folder.path()), shared().0, Some(named("now"))).expect("a thread");
        assert_eq!(wait(saver.load()).expect("kept").expect("one").revision, "now");
        let since = std::time::Instant::now();
        while revision(folder.path()) != "now" {
            assert!(since.elapsed() < AGAIN * 5, "not saved by itself");
            thread::yield_now();
        }
    }

    #[test]
    fn what_the_disk_did_not_take_is_told_and_tried_again_until_it_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        let (shared, _events) = shared();
        let saver = Saver::start(Persist::new(&state), shared.clone(), None).expect("a thread");
        wait(saver.save(named("one"))).expect("tried");
        wait(saver.save(named("two"))).expect("tried");
        let told = shared.told.all_troubles();
        assert!(
            told[0].contains("not on disk") && told[0].contains("snapshot.json"),
            "{told:?}"
        );
        let kept = wait(saver.load()).expect("from memory").expect("one");
        assert_eq!(kept.revision, "two");
        fs::create_dir(&state).expect("a folder");
        let since = std::time::Instant::now();
        while !shared.told.all_troubles().is_empty() {
            assert!(since.elapsed() < AGAIN * 5, "not tried again");
            thread::yield_now();
        }
        assert_eq!(revision(&state), "two");
        assert_eq!(fs::read_dir(&state).expect("read").count(), 1, "nothing else is left");
    }
}
