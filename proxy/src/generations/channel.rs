//! Carries messages and descriptors between two generations on this host (unix(7), `SCM_RIGHTS`).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Message;
use crate::fdstore::Named;
use crate::frames;

/// Descriptors in one message at most: the kernel's limit (`SCM_MAX_FD`).
const MOST: usize = 253;
/// Asked of the socket at once, bytes.
const READ: usize = 64 * 1024;
/// One that takes no byte for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end that says.
pub struct Sender(Rc<UnixStream>);

/// The end that hears.
pub struct Receiver {
    stream: Rc<UnixStream>,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// Both ends of a connection.
pub fn channel(stream: UnixStream) -> (Sender, Receiver) {
    let stream = Rc::new(stream);
    let receiver = Receiver {
        stream: stream.clone(),
        received: Vec::new(),
        descriptors: VecDeque::new(),
    };
    (Sender(stream), receiver)
}

impl Sender {
    /// Says something.
    pub async fn send(&mut self, message: &Message) -> io::Result<()> {
        self.write(&frames::frame(message)?, &[]).await
    }

    /// Gives duplicates of descriptors, under their names.
    pub async fn give(&mut self, descriptors: &[Named]) -> io::Result<()> {
        for some in descriptors.chunks(MOST) {
            let names = some.iter().map(|(name, _)| name.clone()).collect();
            let raw: Vec<RawFd> = some.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
            self.write(&frames::frame(&Message::Descriptors { names })?, &raw)
                .await?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let mut sent = 0;
        while sent < bytes.len() {
            let attached: &[_] = match sent == 0 && !descriptors.is_empty() {
                true => &rights,
                false => &[],
            };
            let some = self.0.async_io(Interest::WRITABLE, || {
                let (fd, part) = (self.0.as_raw_fd(), [IoSlice::new(&bytes[sent..])]);
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(sendmsg::<()>(fd, &part, attached, flags, None)?)
            });
            sent += timeout(PATIENCE, some)
                .await
                .map_err(|_| io::Error::other("the other generation does not read"))??;
        }
        Ok(())
    }
}

impl Receiver {
    /// What is said next. May be dropped while it waits: nothing of it is lost.
    pub async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = frames::take(&mut self.received)? {
                return Ok(serde_json::from_slice(&message)?);
            }
            let (received, descriptors) = (&mut self.received, &mut self.descriptors);
            let fd = self.stream.as_raw_fd();
            let read = self
                .stream
                .async_io(Interest::READABLE, || read(fd, received, descriptors));
            if read.await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The descriptors that came with a message of these names.
    pub fn descriptors(&mut self, names: Vec<String>) -> io::Result<Vec<Named>> {
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "a descriptor did not come with its name");
        let named = names
            .into_iter()
            .map(|name| Some((name, self.descriptors.pop_front()?)));
        named.collect::<Option<_>>().ok_or_else(missing)
    }
}

fn read(fd: RawFd, received: &mut Vec<u8>, descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut bytes = vec![0; READ];
    let length = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made them for this process, nobody else has them.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    received.extend_from_slice(&bytes[..length]);
    Ok(length)
}
