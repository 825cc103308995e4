//! Turns the short-lived process of `ExecReload=` into the start of a new main process.
//!
//! The new process is a grandchild whose parent has ended: the service manager's own child, so that its end is noticed.
//! It is made the main one when it has all that it needs, and not before.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, exit};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use sd_notify::NotifyState;

use crate::told::{self, Level};

/// Which of the two processes this is.
pub enum Launch {
    /// The short-lived one, and how it ends.
    Launcher(ExitCode),
    /// The new one.
    New(Launched),
}

/// The new process's line to its launcher.
pub struct Launched(UnixStream);

const MAIN: u8 = b'm';
const SERVES: u8 = b's';

/// Makes a new process; the call returns in both.
///
/// # Safety
/// Call while the process has one thread (fork(2)).
pub unsafe fn launch() -> io::Result<Launch> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Err(io::Error::other(
            "nobody can be told of the new process: hostmesh-proxy.service needs NotifyAccess=exec, and starts this by \
             ExecReload=",
        ));
    }
    let (ours, its) = UnixStream::pair()?;
    // SAFETY: by contract there is one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: as before.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => {
                    drop(ours);
                    Ok(Launch::New(Launched(its)))
                }
                Ok(ForkResult::Parent { .. }) => exit(0),
                Err(_) => exit(1),
            }
        }
        ForkResult::Parent { child } => {
            drop(its);
            // Only then is the new process a child of the service manager's.
            waitpid(child, None)?;
            Ok(Launch::Launcher(see_it_serve(ours)))
        }
    }
}

fn see_it_serve(new: UnixStream) -> ExitCode {
    match serves(new) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            told::write_line(
                Level::Error,
                format_args!("nothing was changed over, the proxy that runs goes on: {error}"),
            );
            ExitCode::FAILURE
        }
    }
}

fn serves(new: UnixStream) -> io::Result<()> {
    let ended = |_| io::Error::other("the new process ended, its reason stands before this line");
    let mut heard = BufReader::new(&new);
    let mut line = String::new();
    heard.read_line(&mut line)?;
    let pid = line.trim_end().parse().map_err(|_| ended(()))?;
    sd_notify::notify(&[NotifyState::MainPid(pid)])?;
    (&new).write_all(&[MAIN])?;
    let mut word = [0];
    heard.read_exact(&mut word).map_err(|_| ended(()))
}

impl Launched {
    /// Waits until the service manager was told that this is the main process.
    pub fn become_main(&mut self) -> io::Result<()> {
        writeln!(self.0, "{}", std::process::id())?;
        let mut word = [0];
        self.0
            .read_exact(&mut word)
            .map_err(|_| io::Error::other("the reload was given up before this process was the main one"))
    }

    /// Lets the reload end well.
    pub fn serves(mut self) -> io::Result<()> {
        self.0.write_all(&[SERVES])
    }
}
