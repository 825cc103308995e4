//! Keeps some of the process's descriptors (`RLIMIT_NOFILE`) for what must always work: the agent's connection, the file
//! of the snapshot, keys.
//!
//! The kernel gives the lowest number that is free, so a number says how many are in use.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::LazyLock;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpStream;

use crate::told::Told;

/// The trouble's name in [`Told`].
pub const ABOUT: &str = "descriptors";

/// Kept at most; of a small limit a quarter.
const KEPT: u64 = 256;

/// Whoever waits for a descriptor looks this often.
const PAUSE: Duration = Duration::from_millis(50);

/// The limit, and the first number that traffic does not get.
static LIMITS: LazyLock<(u64, RawFd)> = LazyLock::new(|| {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let ceiling = limit - KEPT.min(limit / 4);
    (limit, RawFd::try_from(ceiling).unwrap_or(RawFd::MAX))
});

/// What a call fails by that finds none left.
#[derive(Debug)]
struct NoneLeft;

impl fmt::Display for NoneLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shortage())
    }
}

impl std::error::Error for NoneLeft {}

/// Did a call fail since this process, or its host, has none left? It says nothing of who was called.
pub fn are_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
        || error.get_ref().is_some_and(|inner| inner.is::<NoneLeft>())
}

/// Does this socket take one of those that are kept?
pub fn is_kept(socket: &impl AsRawFd) -> bool {
    socket.as_raw_fd() >= LIMITS.1
}

/// An error for a socket that takes one of those that are kept: the call fails, other calls may do.
pub fn spare(socket: &impl AsRawFd) -> io::Result<()> {
    if is_kept(socket) {
        return Err(io::Error::other(NoneLeft));
    }
    Ok(())
}

/// Tells whether there are some left for traffic.
pub fn watch(told: &Told, any: impl AsFd) {
    match fcntl(any.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(0)) {
        // SAFETY: just made, nobody else has it.
        Ok(raw) => match unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) } {
            fd if is_kept(&fd) => told.trouble(ABOUT, shortage()),
            _ => told.well(ABOUT),
        },
        Err(_) => told.trouble(ABOUT, shortage()),
    }
}

/// The stream under a number that is for traffic: waits for one where there is none.
pub async fn below(stream: TcpStream, told: &Told) -> io::Result<TcpStream> {
    if !is_kept(&stream) {
        return Ok(stream);
    }
    told.trouble(ABOUT, shortage());
    let stream = stream.into_std()?;
    loop {
        tokio::time::sleep(PAUSE).await;
        match stream.try_clone() {
            Ok(moved) if !is_kept(&moved) => return TcpStream::from_std(moved),
            _ => {}
        }
    }
}

/// Waits a little, with no descriptor at all.
pub async fn none_left(told: &Told) {
    told.trouble(ABOUT, shortage());
    tokio::time::sleep(PAUSE).await;
}

fn shortage() -> String {
    format!(
        "no descriptors are left (LimitNOFILE={}): new connections wait, calls fail. Raise LimitNOFILE= of \
         hostmesh-proxy.service, or find who holds so many connections (ss -tp)",
        LIMITS.0
    )
}
