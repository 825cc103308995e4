//! Counts a body as it passes: how many of these bytes belong to it, and is it over?

use bytes::Bytes;
use thiserror::Error;

use crate::trace;

/// How a message's end is found (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    Empty,
    /// So many bytes, at least one.
    Length(u64),
    /// Chunks, then trailer fields.
    Chunked,
    /// A response that ends with its connection.
    UntilClose,
}

/// A chunk's line, its extensions included, may have so many bytes.
const MAX_CHUNK_LINE: usize = 1024;
/// All trailer fields together.
const MAX_TRAILERS: usize = 8 * 1024;
const MAX_TRAILER_FIELDS: usize = 32;

/// Why a body cannot go on: its connection must not be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum BodyError {
    #[error("a bad chunk")]
    Chunk,
    #[error("a bad trailer field, or one that must not come after the body")]
    Trailer,
    #[error("the connection ended before the body did")]
    Truncated,
}

/// A body under way.
#[derive(Debug, Clone)]
pub struct Body {
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// With the trailer fields, where there were any.
    Done(Option<Box<[u8]>>),
    Length(u64),
    UntilClose,
    /// In a chunk's size: the value so far, digits seen.
    Size(u64, usize),
    /// In a chunk's extension: size, length of the line so far.
    Extension(u64, usize),
    /// CR of a chunk's line seen.
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// After the last chunk: the trailer fields as they come, their empty line included.
    Trailers(Vec<u8>),
}

impl Body {
    /// At its beginning.
    pub fn new(framing: Framing) -> Self {
        Self {
            state: match framing {
                Framing::Empty | Framing::Length(0) => State::Done(None),
                Framing::Length(length) => State::Length(length),
                Framing::Chunked => State::Size(0, 0),
                Framing::UntilClose => State::UntilClose,
            },
        }
    }

    /// Is it over?
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// How many of these bytes, from the first, belong to the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut at = 0;
        while at < bytes.len() {
            let left = &bytes[at..];
            at += match &mut self.state {
                State::Done(_) => break,
                State::UntilClose => left.len(),
                State::Length(length) => {
                    let taken = take(length, left);
                    if *length == 0 {
                        self.state = State::Done(None);
                    }
                    taken
                }
                State::Data(length) => {
                    let taken = take(length, left);
                    if *length == 0 {
                        self.state = State::DataCr;
                    }
                    taken
                }
                State::Trailers(_) => self.trailer_bytes(left)?,
                _ => self.chunk_line(left[0])?,
            };
        }
        Ok(at)
    }

    /// Takes the next run of data from the front of these bytes, and what stands before it. `None`: there is none in them.
    pub fn data(&mut self, bytes: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        while !bytes.is_empty() && !self.is_done() {
            let run = match self.state {
                State::UntilClose => bytes.len(),
                State::Length(length) | State::Data(length) => usize::try_from(length).unwrap_or(usize::MAX),
                _ => 0,
            };
            let length = if run == 0 { 1 } else { run.min(bytes.len()) };
            let taken = self.feed(&bytes[..length])?;
            let data = bytes.split_to(taken);
            if run > 0 {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The trailer fields, their empty line included, once it is over.
    pub fn trailers(&self) -> Option<&[u8]> {
        match &self.state {
            State::Done(trailers) => trailers.as_deref(),
            _ => None,
        }
    }

    /// The connection ended: is that where the body ends?
    pub fn end(&self) -> Result<(), BodyError> {
        match self.state {
            State::Done(_) | State::UntilClose => Ok(()),
            _ => Err(BodyError::Truncated),
        }
    }

    /// One byte of what stands between chunks (RFC 9112, section 7.1). No white space, no bare CR or LF.
    fn chunk_line(&mut self, byte: u8) -> Result<usize, BodyError> {
        let next = match (&self.state, byte) {
            (State::Size(size, digits), byte) if byte.is_ascii_hexdigit() && *digits < 15 => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (State::Size(size, 1..), b'\r') => State::SizeEnd(*size),
            (State::Size(size, digits @ 1..), b';') => State::Extension(*size, *digits),
            (State::Extension(size, _), b'\r') => State::SizeEnd(*size),
            (State::Extension(size, line), b'\t' | b' '..=b'~' | 0x80..) if *line < MAX_CHUNK_LINE => {
                State::Extension(*size, line + 1)
            }
            (State::SizeEnd(0), b'\n') => State::Trailers(Vec::new()),
            (State::SizeEnd(size), b'\n') => State::Data(*size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0, 0),
            _ => return Err(BodyError::Chunk),
        };
        self.state = next;
        Ok(1)
    }

    fn trailer_bytes(&mut self, left: &[u8]) -> Result<usize, BodyError> {
        let State::Trailers(seen) = &mut self.state else {
            return Err(BodyError::Trailer);
        };
        for (index, byte) in left.iter().enumerate() {
            let last = seen.last().copied();
            if (*byte == b'\n') != (last == Some(b'\r')) || seen.len() >= MAX_TRAILERS {
                return Err(BodyError::Trailer);
            }
            seen.push(*byte);
            if *byte == b'\n' && (seen.len() == 2 || seen.ends_with(b"\r\n\r\n")) {
                check_trailers(seen)?;
                let trailers = (seen.len() > 2).then(|| std::mem::take(seen).into());
                self.state = State::Done(trailers);
                return Ok(index + 1);
            }
        }
        Ok(left.len())
    }
}

fn take(length: &mut u64, left: &[u8]) -> usize {
    let taken = usize::try_from(*length).map_or(left.len(), |length| length.min(left.len()));
    *length -= taken as u64;
    taken
}

fn check_trailers(bytes: &[u8]) -> Result<(), BodyError> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(bytes, &mut slots) else {
        return Err(BodyError::Trailer);
    };
    if fields.iter().any(|field| is_never_trailer(field.name)) {
        return Err(BodyError::Trailer);
    }
    Ok(())
}

/// Fields that an application might merge into the head, where the relay has judged or set them (RFC 9110, section
/// 6.5.1).
pub fn is_never_trailer(name: &str) -> bool {
    const NEVER: [&str; 8] = [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    super::rewrite::is_mesh_field(name.as_bytes())
        || trace::is_field(name.as_bytes())
        || NEVER.iter().any(|never| never.eq_ignore_ascii_case(name))
}
