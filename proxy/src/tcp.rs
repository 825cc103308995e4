//! Carries opaque bytes both ways until both sides have said their end.
//!
//! Law: an end is passed on as an end, a reset as a reset. No bytes are looked at; nobody must speak first.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::rejudge::Denial;
use crate::sockopt;
use crate::stream::{DENIED, Stream, WireStream};
use crate::wire::FRAME;

/// Asked of a socket at once, bytes: what one frame of the wire holds.
const READ: usize = FRAME as usize;
/// Less than this left in the block: the next read begins a new one.
const ENOUGH: usize = 16 * 1024;

thread_local! {
    /// The block into which this worker's sockets are read. Each read takes its part; a block lives as long as its parts.
    static BLOCK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What a relay carried, and how it ended.
pub struct Relayed {
    /// Bytes from the first side to the second.
    pub sent: u64,
    /// Bytes back.
    pub received: u64,
    /// An error where one side broke off, or policy did.
    pub result: io::Result<()>,
    /// Why policy did.
    pub denied: Option<Denial>,
}

impl Relayed {
    /// The same, seen from the other side.
    pub fn reversed(self) -> Self {
        Self {
            sent: self.received,
            received: self.sent,
            ..self
        }
    }
}

/// Relays between an application and the other side, in both directions, unless it is denied meanwhile, or nothing moves
/// for the time of `idle`.
pub async fn relay(
    application: TcpStream,
    other: Stream,
    idle: Option<Duration>,
    denied: Pin<&mut impl Future<Output = Denial>>,
) -> Relayed {
    match other {
        Stream::Tcp(other) => relay_tcp(application, other, idle, denied).await,
        Stream::Wire(other) => relay_wire(application, *other, idle, denied).await,
    }
}

/// Why a direction stopped before its end.
enum Stop {
    /// It writes to a side that has said its end and is gone: nobody misses what was left.
    Left,
    /// Something broke.
    Broke(io::Error),
    /// It is not allowed any more.
    Denied(Denial),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broke(error)
    }
}

/// A write that failed: of no account when the one who was to read had said its end before.
fn unwritten(reader_ended: &Cell<bool>) -> impl Fn(io::Error) -> Stop {
    |error| {
        if reader_ended.get() {
            Stop::Left
        } else {
            Stop::Broke(error)
        }
    }
}

fn relayed(sent: &Cell<u64>, received: &Cell<u64>, stopped: Result<(), Stop>) -> Relayed {
    let (result, denied) = match stopped {
        Err(Stop::Broke(error)) => (Err(error), None),
        Err(Stop::Denied(denial)) => (Err(io::ErrorKind::PermissionDenied.into()), Some(denial)),
        Ok(()) | Err(Stop::Left) => (Ok(()), None),
    };
    Relayed {
        sent: sent.get(),
        received: received.get(),
        result,
        denied,
    }
}

/// Both directions, to their end or to the denial.
async fn both(
    up: Pin<&mut impl Future<Output = Result<(), Stop>>>,
    down: Pin<&mut impl Future<Output = Result<(), Stop>>>,
    stuck: Pin<&mut impl Future<Output = ()>>,
    denied: Pin<&mut impl Future<Output = Denial>>,
) -> Result<(), Stop> {
    tokio::select! {
        biased;
        denial = denied => Err(Stop::Denied(denial)),
        () = stuck => Err(Stop::Broke(io::Error::new(io::ErrorKind::TimedOut, "nothing moved for idle_timeout"))),
        stopped = async { tokio::try_join!(up, down) } => stopped.map(|_| ()),
    }
}

/// Ends when nothing has moved for so long, or up to a tenth longer. `moved`: what grows with whatever moves.
pub async fn stands_still(limit: Option<Duration>, moved: impl Fn() -> u64) {
    let Some(limit) = limit else { return pending().await };
    let (mut seen, mut since) = (moved(), Instant::now());
    while since.elapsed() < limit {
        sleep(limit / 10).await;
        if moved() != seen {
            (seen, since) = (moved(), Instant::now());
        }
    }
}

async fn relay_wire(
    tcp: TcpStream,
    mut wire: WireStream,
    idle: Option<Duration>,
    denied: Pin<&mut impl Future<Output = Denial>>,
) -> Relayed {
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let (tcp_ended, wire_ended) = (Cell::new(false), Cell::new(false));
    let stopped = {
        let (sender, receiver) = wire.split();
        let up = pin!(async {
            while let Some(data) = read(&tcp).await? {
                sent.set(sent.get() + data.len() as u64);
                sender.write(data).await.map_err(unwritten(&wire_ended))?;
            }
            tcp_ended.set(true);
            sender.finish().map_err(unwritten(&wire_ended))
        });
        let down = pin!(async {
            while let Some(data) = receiver.read().await? {
                write(&tcp, &data).await.map_err(unwritten(&tcp_ended))?;
                received.set(received.get() + data.len() as u64);
                receiver.consumed(data.len());
            }
            wire_ended.set(true);
            shut(&tcp).map_err(unwritten(&tcp_ended))
        });
        let stuck = pin!(stands_still(idle, || sent.get() + received.get()));
        both(up, down, stuck, denied).await
    };
    if let Err(stop) = &stopped {
        wire.reset(match stop {
            Stop::Denied(_) => DENIED,
            _ => h2::Reason::CONNECT_ERROR,
        });
        sockopt::abort(tcp);
    }
    relayed(&sent, &received, stopped)
}

async fn relay_tcp(
    one: TcpStream,
    two: TcpStream,
    idle: Option<Duration>,
    denied: Pin<&mut impl Future<Output = Denial>>,
) -> Relayed {
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let (one_ended, two_ended) = (Cell::new(false), Cell::new(false));
    let stopped = {
        let up = pin!(carry(&one, &one_ended, &two, &two_ended, &sent));
        let down = pin!(carry(&two, &two_ended, &one, &one_ended, &received));
        let stuck = pin!(stands_still(idle, || sent.get() + received.get()));
        both(up, down, stuck, denied).await
    };
    if stopped.is_err() {
        sockopt::abort(one);
        sockopt::abort(two);
    }
    relayed(&sent, &received, stopped)
}

async fn carry(
    from: &TcpStream,
    from_ended: &Cell<bool>,
    to: &TcpStream,
    to_ended: &Cell<bool>,
    count: &Cell<u64>,
) -> Result<(), Stop> {
    while let Some(data) = read(from).await? {
        write(to, &data).await.map_err(unwritten(to_ended))?;
        count.set(count.get() + data.len() as u64);
    }
    from_ended.set(true);
    shut(to).map_err(unwritten(to_ended))
}

/// The next bytes of a socket; `None` at its end. Owns no buffer while it waits.
pub async fn read(tcp: &TcpStream) -> io::Result<Option<Bytes>> {
    loop {
        // A socket is read by one task: the place for one waker does, and takes no list of waiters.
        poll_fn(|cx| tcp.poll_read_ready(cx)).await?;
        match BLOCK.with_borrow_mut(|block| read_into(tcp, block)) {
            Ok(data) if data.is_empty() => return Ok(None),
            Ok(data) => return Ok(Some(data)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Less than was asked for says that no more is there (epoll(7), "edge-triggered"): the socket counts as not readable then,
/// which saves the read that would find nothing.
fn read_into(tcp: &TcpStream, block: &mut BytesMut) -> io::Result<Bytes> {
    if block.capacity() < ENOUGH {
        block.reserve(READ);
    }
    let room = block.capacity();
    let mut count = None;
    let looked = tcp.try_io(Interest::READABLE, || {
        let read = tcp.try_read_buf(block)?;
        count = Some(read);
        if 0 < read && read < room {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(())
        }
    });
    match (count, looked) {
        (Some(count), _) => Ok(block.split_to(count).freeze()),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Sends all of it.
pub async fn write(tcp: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match tcp.try_write(data) {
            Ok(written) => data = &data[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says the end. A side that is gone already needs no end.
pub fn shut(tcp: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}
