//! Turns systemd's fd store into named descriptors that outlive the process (sd_listen_fds(3), sd_notify(3)).
//!
//! `store` and `remove` do nothing when no service manager listens (`NOTIFY_SOCKET` unset): by hand, nothing is kept.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sd_notify::NotifyState;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// A descriptor under its name in the fd store.
pub type Named = (String, OwnedFd);

/// The descriptors with which the process was started; each can be taken once.
pub struct Inherited(Mutex<Vec<Named>>);

impl Inherited {
    /// Takes over `LISTEN_FDS` when `LISTEN_PID` names this process, and marks each close-on-exec.
    ///
    /// # Safety
    /// Call once, before anything else in the process opens or owns a descriptor.
    pub unsafe fn from_environment() -> io::Result<Self> {
        let text = |name| std::env::var(name).unwrap_or_default();
        if text("LISTEN_PID").parse() != Ok(std::process::id()) {
            return Ok(Self::of(Vec::new()));
        }
        let count: RawFd = text("LISTEN_FDS")
            .parse()
            .map_err(|_| io::Error::other("LISTEN_FDS is not a number"))?;
        let names = text("LISTEN_FDNAMES");
        let mut names = names.split(':');
        let mut fds = Vec::new();
        for raw in FIRST..FIRST.saturating_add(count) {
            // SAFETY: the service manager opened these for this process, and by contract nobody owns them yet.
            let fd = unsafe { OwnedFd::from_raw_fd(raw) };
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            fds.push((names.next().unwrap_or("unknown").to_owned(), fd));
        }
        Ok(Self::of(fds))
    }

    /// These, under these names.
    pub fn of(fds: Vec<Named>) -> Self {
        Self(Mutex::new(fds))
    }

    /// All descriptors whose name begins with `prefix`, in the order in which they were passed.
    pub fn take(&self, prefix: &str) -> Vec<Named> {
        let mut fds = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let all = std::mem::take(&mut *fds);
        let (taken, left) = all.into_iter().partition(|(name, _)| name.starts_with(prefix));
        *fds = left;
        taken
    }
}

/// Leaves a duplicate of `fd` with the service manager under `name`: it comes back at the next start.
pub fn store(name: &str, fd: impl AsFd) -> io::Result<()> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(());
    }
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[fd.as_fd()])
}

/// Has the service manager close what it keeps under `name`.
pub fn remove(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}
