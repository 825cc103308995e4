//! Frames on a stream: four bytes of length, big-endian, and one JSON object (`hostmesh/wire/proxy_control.py`).

use std::io;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// The largest frame either side sends.
pub const MAX_FRAME: usize = 64 * 1024 * 1024;

/// An agent that takes no byte for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The frame of a message.
pub fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::other("a message is too large for a frame"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Takes the first message off what was received, once it is whole.
pub fn take(received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let Some(length) = received.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes"),
        ));
    }
    if received.len() < 4 + length {
        return Ok(None);
    }
    let rest = received.split_off(4 + length);
    let mut message = std::mem::replace(received, rest);
    message.drain(..4);
    Ok(Some(message))
}

/// Writes to the agent, as long as it takes what is written.
pub async fn write(agent: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    for part in bytes.chunks(64 * 1024) {
        timeout(PATIENCE, agent.write_all(part))
            .await
            .map_err(|_| io::Error::other("the agent does not read"))??;
    }
    Ok(())
}

/// Frames off a stream; what was read of one that is not complete is kept when the wait for it is dropped.
pub struct Frames<R> {
    stream: R,
    buffer: Vec<u8>,
}

impl<R: AsyncReadExt + Unpin> Frames<R> {
    /// Off this stream.
    pub fn of(stream: R) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// The next one.
    pub async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(frame) = take(&mut self.buffer)? {
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
