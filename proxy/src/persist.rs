//! Turns the snapshot in force into a file, and the file into the first config of the next start.
//!
//! Law: the file is whole or the one of before (write, fsync, rename, fsync of the folder). It is a convenience, not an
//! authority: one that does not build any more is told and left aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;

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
