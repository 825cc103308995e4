//! Listens on Unix sockets for those on this host who may speak (unix(7)).

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use crate::told::{Level, Told};

/// After a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens on `path`, mode 0600; a socket that another process listens on, or left behind, is replaced at once.
pub fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let new = path.with_extension("new");
    for there in [path, &new] {
        match std::fs::symlink_metadata(there) {
            Ok(found) if found.file_type().is_socket() => {}
            Ok(_) => return Err(io::Error::other(format!("{} is there and no socket", there.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// The next connection of somebody who may speak; others are closed and told in the log.
pub async fn accept(listener: &UnixListener, uid: u32, told: &Told) -> UnixStream {
    loop {
        let refused = match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(who) if who.uid() == uid => return stream,
                Ok(who) => format!("uid {} may not speak, uid {uid} may", who.uid()),
                Err(error) => error.to_string(),
            },
            // No descriptor is left, most likely: waiting is all that helps.
            Err(error) => {
                tokio::time::sleep(PAUSE).await;
                error.to_string()
            }
        };
        told.say(Level::Warning, format_args!("control connection refused: {refused}"));
    }
}
