//! Frames on a stream: four bytes of length, big-endian, and one JSON object (`hostmesh/wire/proxy_control.py`).

use std::io;

use serde::Serialize;

/// The largest frame either side sends.
pub const MAX_FRAME: usize = 64 * 1024 * 1024;

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
