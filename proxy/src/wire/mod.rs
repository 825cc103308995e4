//! The one wire between proxies: TLS 1.3, ALPN `h2`, a CONNECT stream for each connection of an application (HBONE).
//!
//! `:authority` is `SNI:PORT`: the unit is what is called, whatever addresses lie between. A server also takes one of its
//! own addresses for the name, as other speakers of HBONE send it; the port must be the unit's either way.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::peer::Reason;
use crate::stats::{Gauge, Held, WorkerStats};

pub mod client;
pub mod dial;
pub mod gather;
pub mod idle;
pub mod server;

use gather::Gathering;

/// DATA in one frame at most, bytes: large enough to cost little, small enough to let others in between. With its head
/// (RFC 9113, section 4.1) it is what h2 and rustls have room for at once; nine bytes more, and each frame is copied once
/// more and leaves a record behind that holds those nine.
pub const FRAME: u32 = 64 * 1024 - 9;
/// Received and not yet consumed at most, bytes: of a stream. Whole frames, here and below: what is left over would be a
/// small frame each time.
const STREAM_WINDOW: u32 = 16 * FRAME;
/// The same of a connection: so many full streams before those that do not read stand in the way of the others.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
/// Accepted and not yet sent at most, bytes of a stream.
const SEND_BUFFER: usize = 4 * FRAME as usize;
/// Header fields of a CONNECT at most, bytes: there are none but `:authority`.
const HEAD: u32 = 16 * 1024;
/// Streams on one connection at most; more open another.
const STREAMS: u32 = 2048;
/// A silent peer is asked after two of these, and given up after one more.
const BEAT: Duration = Duration::from_secs(5);
/// Sent data that stays unacknowledged so long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS and HTTP/2 must stand within this.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a connection's driver, its streams and its pool know of each other.
#[derive(Default)]
pub struct Link {
    streams: Cell<usize>,
    idle_since: Cell<Option<Instant>>,
    retired: Cell<bool>,
    killed: Cell<bool>,
    driver: RefCell<Option<Waker>>,
    /// Who waits for it to be retired.
    waiting: RefCell<Vec<Waker>>,
    alert: RefCell<Option<Alert>>,
}

/// What the peer's TLS said last, when it refused.
struct Alert {
    text: String,
    is_new: bool,
}

impl Link {
    /// Counts one more stream for as long as the lease lives.
    pub fn lease(self: &Rc<Self>, stats: &WorkerStats) -> Lease {
        self.streams.set(self.streams.get() + 1);
        Lease {
            link: self.clone(),
            _held: stats.hold(Gauge::Streams),
        }
    }

    /// Open streams.
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    /// No new streams; those that are open end in their own time.
    pub fn retire(&self) {
        self.retired.set(true);
        self.waiting.take().into_iter().for_each(Waker::wake);
        self.wake();
    }

    /// Ends the connection now, with all its streams.
    pub fn kill(&self) {
        self.killed.set(true);
        self.retire();
    }

    /// Does it take no new streams any more?
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Keeps what the peer refused us with.
    fn ended_by(&self, error: &io::Error) {
        if Reason::of(error) == Reason::RefusedByPeer {
            let text = error.to_string();
            *self.alert.borrow_mut() = Some(Alert { text, is_new: true });
        }
    }

    /// What the peer refused us with, if it did, and whether nobody asked before.
    fn alert(&self) -> Option<(String, bool)> {
        let mut alert = self.alert.borrow_mut();
        let alert = alert.as_mut()?;
        Some((alert.text.clone(), std::mem::take(&mut alert.is_new)))
    }

    /// For how long it has had no streams.
    fn idle_for(&self) -> Option<Duration> {
        let since = self.idle_since.get().filter(|_| self.streams() == 0)?;
        Some(since.elapsed())
    }

    /// Ready when it takes no new streams any more.
    pub fn poll_retired(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_retired() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&self) {
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
    }

    fn poll_killed(&self, cx: &Context<'_>) -> Poll<io::Error> {
        if self.killed.get() {
            return Poll::Ready(io::Error::other("the peer is not trusted any more"));
        }
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// One stream's place on its connection.
pub struct Lease {
    link: Rc<Link>,
    _held: Held,
}

impl Lease {
    /// Does the connection take no new streams any more?
    pub fn is_retired(&self) -> bool {
        self.link.is_retired()
    }

    /// The connection.
    pub fn link(&self) -> Rc<Link> {
        self.link.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let left = self.link.streams.get() - 1;
        self.link.streams.set(left);
        if left == 0 {
            self.link.idle_since.set(Some(Instant::now()));
            self.link.wake();
        }
    }
}

/// Notices a peer that is silent: asks by PING (RFC 9113, section 6.7) after 10 s, gives up after 5 s more.
struct Heart<S> {
    io: Gathering<S>,
    pings: PingPong,
    beats: Interval,
    silent: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Heart<S> {
    fn new(io: Gathering<S>, pings: PingPong) -> Self {
        let mut beats = interval_at(Instant::now() + BEAT, BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            io,
            pings,
            beats,
            silent: 0,
        }
    }

    /// Ready when the peer is given up.
    fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.beats.poll_tick(cx).is_ready() {
            if self.io.take_received() {
                self.silent = 0;
                continue;
            }
            self.silent += 1;
            if self.silent > 2 {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer"));
            }
            // One that is still on its way asks as well as a second.
            let _outstanding = if self.silent == 2 {
                self.pings.send_ping(Ping::opaque())
            } else {
                Ok(())
            };
        }
        if let Poll::Ready(Err(error)) = self.pings.poll_pong(cx) {
            return Poll::Ready(io::Error::other(error));
        }
        Poll::Pending
    }
}

/// The transport's own error, where it was that.
fn cause(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::other(error)
    }
}

/// Runs a client's connection to its end.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: h2::client::Connection<Gathering<S>, bytes::Bytes>,
    io: Gathering<S>,
    link: Rc<Link>,
) -> io::Result<()> {
    let mut heart = connection.ping_pong().map(|pings| Heart::new(io.clone(), pings));
    let ended = poll_fn(|cx| {
        if let Poll::Ready(error) = link.poll_killed(cx) {
            return Poll::Ready(Err(error));
        }
        if let Some(Poll::Ready(error)) = heart.as_mut().map(|heart| heart.poll_dead(cx)) {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(ended) = std::pin::Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended.map_err(cause));
        }
        match io.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    })
    .await;
    link.retire();
    if let Some(error) = io.take_broken() {
        link.ended_by(&error);
    }
    ended
}
