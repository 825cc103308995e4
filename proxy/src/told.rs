//! Turns what the process has to say of itself into lines of its journal, and its troubles into what the agent shows.
//!
//! Law: nobody waits for the journal, and a journal that is gone ends nothing: a line that is not taken at once is lost,
//! and counted.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{MsgFlags, send};
use std::os::fd::AsRawFd;

/// How much it matters, as syslog(3) counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Something does not work.
    Error = 3,
    /// Somebody should know.
    Warning = 4,
    /// Not of every day.
    Notice = 5,
    /// For the record.
    Info = 6,
}

/// One for the process.
#[derive(Default)]
pub struct Told {
    lost: AtomicU64,
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

impl Told {
    /// Writes a line.
    pub fn say(&self, level: Level, what: fmt::Arguments<'_>) {
        if !write_line(level, what) {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Something is wrong with this process or its host, and what helps: told when it begins or becomes another, and
    /// shown until it is well.
    pub fn trouble(&self, about: &'static str, what: String) {
        let mut troubles = self.troubles();
        if troubles.get(about) != Some(&what) {
            self.say(Level::Error, format_args!("{what}"));
            troubles.insert(about, what);
        }
    }

    /// That trouble is over; told where it was told.
    pub fn well(&self, about: &'static str) {
        if self.troubles().remove(about).is_some() {
            self.say(Level::Info, format_args!("{about}: well again"));
        }
    }

    /// What is wrong now.
    pub fn all_troubles(&self) -> Vec<String> {
        self.troubles().values().cloned().collect()
    }

    /// Lines that were not taken.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line to stderr with the prefix that journald reads (sd-daemon(3)); false where it was not taken at once.
/// journald's end is a socket, and is not waited for; a terminal or a file may be.
pub fn write_line(level: Level, what: fmt::Arguments<'_>) -> bool {
    let line = format!("<{}>{what}\n", level as u8);
    let stderr = io::stderr();
    match send(
        stderr.as_raw_fd(),
        line.as_bytes(),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
    ) {
        Ok(sent) => sent == line.len(),
        Err(nix::errno::Errno::ENOTSOCK) => stderr.lock().write_all(line.as_bytes()).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_shown_until_it_is_well() {
        let told = Told::default();
        told.trouble("disk", "the disk is full".into());
        told.trouble("disk", "the disk is read-only".into());
        told.trouble("descriptors", "none is left".into());
        assert_eq!(told.all_troubles(), ["none is left", "the disk is read-only"]);
        told.well("disk");
        told.well("disk");
        assert_eq!(told.all_troubles(), ["none is left"]);
    }
}
