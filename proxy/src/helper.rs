//! Moves connections between a worker and its helper: two threads share what is much for one, and one does what is little.
//!
//! Law: only what is no more than its socket moves: a connection of HTTP/1.1 between two requests, or one that was just
//! accepted. Nothing is done for it while no requests come, and nothing moves once another process has taken over.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{self, IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hostmesh_proxy_core::config::Protocol;
use hostmesh_proxy_core::helper::Work;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::listener::Kind;
use crate::stats::Gauge;
use crate::told::Level;
use crate::worker::Worker;

/// A worker looks so often, while it has requests, whether connections shall leave it.
const LOOK: Duration = Duration::from_millis(250);
/// In less time than this nothing is seen.
const GLANCE: Duration = Duration::from_millis(25);
/// Where answers are few, a look goes on until this many connections had one, or until it is so long.
const FEW: usize = 4;
const LONG_LOOK: Duration = Duration::from_secs(2);

/// A connection on its way.
pub struct Moving {
    socket: net::TcpStream,
    what: What,
}

/// What is known of it.
pub enum What {
    /// It was accepted just now, from there.
    New(Kind, SocketAddr),
    /// A unit's, between two requests of HTTP/1.1.
    Moved(Moved),
}

/// A unit's connection to an HTTP port.
#[derive(Clone, Copy)]
pub struct Moved {
    /// The unit's number.
    pub unit: u32,
    /// What was called.
    pub called: SocketAddr,
    /// The unit's address.
    pub client: IpAddr,
    /// What the first bytes told, where the port does not say what is spoken.
    pub told: Option<Protocol>,
}

/// By which is seen how long a worker was busy, from any thread; the worker sets it.
type Clock = Arc<OnceLock<Handle>>;

/// What a worker has of the two.
pub struct Side {
    is_helper: bool,
    own: Clock,
    other: Clock,
    to_other: RefCell<Option<UnboundedSender<Moving>>>,
    from_other: Cell<Option<UnboundedReceiver<Moving>>>,
    looked: Cell<Look>,
    /// Of this look: connections that had a request, those that are still to leave, and whether the next new one is.
    active: Cell<usize>,
    leaving: Cell<usize>,
    passes: Cell<bool>,
}

/// A look, and what was seen in it.
#[derive(Clone, Copy)]
struct Look {
    /// Counts them.
    number: u32,
    at: Instant,
    /// For how long both were busy until then, since they began.
    own: Duration,
    other: Duration,
    /// What they did between the look before and this one.
    work: Work,
}

/// Both sides: the worker's and its helper's.
pub fn pair() -> [Side; 2] {
    let clocks = [Clock::default(), Clock::default()];
    let (to_worker, of_worker) = unbounded_channel();
    let (to_helper, of_helper) = unbounded_channel();
    let looked = Look {
        number: 1,
        at: Instant::now(),
        own: Duration::ZERO,
        other: Duration::ZERO,
        work: Work::default(),
    };
    let side = |is_helper: bool, to_other, from_other| Side {
        is_helper,
        own: clocks[usize::from(is_helper)].clone(),
        other: clocks[usize::from(!is_helper)].clone(),
        to_other: RefCell::new(Some(to_other)),
        from_other: Cell::new(Some(from_other)),
        looked: Cell::new(looked),
        active: Cell::new(0),
        leaving: Cell::new(0),
        passes: Cell::new(false),
    };
    [side(false, to_helper, of_worker), side(true, to_worker, of_helper)]
}

/// For how long it was busy, whatever with; a worker that has not begun was not.
fn time(clock: &Clock) -> Duration {
    let runtime = clock.get().map(Handle::metrics);
    runtime.map_or(Duration::ZERO, |metrics| metrics.worker_total_busy_duration(0))
}

impl Side {
    /// The worker begins, in this runtime.
    pub fn begin(&self) {
        self.own.get_or_init(Handle::current);
    }

    /// What both did since the last look.
    fn work(&self, now: Instant) -> Work {
        let looked = self.looked.get();
        Work {
            own: time(&self.own).saturating_sub(looked.own),
            other: time(&self.other).saturating_sub(looked.other),
            within: now.duration_since(looked.at),
            active: self.active.get(),
        }
    }

    /// Sees how busy both are. Called at every request, and does that from time to time.
    pub fn look(&self, now: Instant) {
        if now.duration_since(self.looked.get().at) < LOOK {
            return;
        }
        let work = self.work(now);
        if work.is_too_much() && work.active < FEW && work.within < LONG_LOOK {
            return;
        }
        self.leaving.set(work.leaving(self.is_helper));
        self.begin_look(now, work);
    }

    fn begin_look(&self, now: Instant, work: Work) {
        self.active.set(0);
        self.looked.set(Look {
            number: self.looked.get().number.wrapping_add(1),
            at: now,
            own: time(&self.own),
            other: time(&self.other),
            work,
        });
    }

    /// A connection comes from the other worker. What was seen before that had something to give away counts for nothing.
    fn comes(&self) {
        let now = Instant::now();
        let is_old = now.duration_since(self.looked.get().at) >= LOOK;
        if self.leaving.take() > 0 || is_old {
            self.begin_look(now, Work::default());
        }
    }

    /// Shall the connection of which a request was answered leave? `seen`: the connection's own, where its last look is kept.
    pub fn is_to_leave(&self, seen: &Cell<u32>) -> bool {
        let number = self.looked.get().number;
        if seen.replace(number) != number {
            self.active.set(self.active.get() + 1);
        }
        let leaving = self.leaving.get();
        self.leaving.set(leaving.saturating_sub(1));
        leaving > 0 && self.to_other.borrow().is_some()
    }

    /// Shall a new connection be the helper's, since the worker has too much to do? Of another host's proxy each one, which may
    /// bring much; of others every second one. The helper keeps what it has been given.
    fn is_to_pass(&self, kind: Kind) -> bool {
        if self.is_helper || self.to_other.borrow().is_none() {
            return false;
        }
        let (now, seen) = (Instant::now(), self.looked.get().work);
        let work = Some(self.work(now))
            .filter(|work| work.within >= GLANCE)
            .unwrap_or(seen);
        work.is_too_much() && (kind == Kind::Wire || self.passes.replace(!self.passes.get()))
    }

    /// So many of as many connections of other hosts' proxies are to be made anew, so that the other worker has them: all of a
    /// helper's that is not needed; one where there is too much, if that helps.
    pub fn links_to_end(&self, links: usize) -> usize {
        self.look(Instant::now());
        let work = self.looked.get().work;
        if self.to_other.borrow().is_none() {
            0
        } else if self.is_helper && work.is_little() {
            links
        } else {
            usize::from(work.is_better_without_one_of(links))
        }
    }

    /// Nothing leaves any more.
    pub fn close(&self) {
        self.to_other.take();
    }

    /// Sends a connection to the other worker.
    fn send(&self, socket: TcpStream, what: What) -> io::Result<()> {
        let socket = socket.into_std()?;
        let to_other = self.to_other.borrow();
        let to_other = to_other.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        to_other
            .send(Moving { socket, what })
            .map_err(|_| io::Error::other("the other worker has ended"))
    }
}

impl Worker {
    /// Sends a connection to the other worker; one that cannot be sent is lost, and that is told.
    pub fn send_on(&self, socket: TcpStream, what: What) {
        let Some(side) = &self.side else { return };
        match side.send(socket, what) {
            Ok(()) => self.stats.add(Gauge::Moved, 1),
            Err(error) => self.lost(&error),
        }
    }

    /// Sends a connection that was accepted just now to the other worker, if that has less to do; else it is given back.
    pub fn pass(&self, kind: Kind, socket: TcpStream, client: SocketAddr) -> Option<TcpStream> {
        if !self.side.as_ref().is_some_and(|side| side.is_to_pass(kind)) {
            return Some(socket);
        }
        self.send_on(socket, What::New(kind, client));
        None
    }

    /// Lets connections of other hosts' proxies end which the other worker shall have: they come again, and then are its own.
    pub fn share_links(&self) {
        let Some(side) = &self.side else { return };
        let links = self.links.borrow();
        let open: Vec<_> = links
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|link| !link.is_retired() && link.is_used())
            .collect();
        let ending = side.links_to_end(open.len());
        open.iter().rev().take(ending).for_each(|link| link.retire());
    }

    /// Serves what the other worker sends, until it sends no more.
    pub async fn take_over(self: Rc<Self>) {
        let Some(mut from_other) = self.side.as_ref().and_then(|side| side.from_other.take()) else {
            return;
        };
        while let Some(Moving { socket, what }) = from_other.recv().await {
            self.side.iter().for_each(Side::comes);
            match TcpStream::from_std(socket) {
                Ok(socket) => self.serve_moved(socket, what),
                Err(error) => self.lost(&error),
            }
        }
    }

    fn lost(&self, error: &io::Error) {
        let what = format_args!("a connection was lost on its way to another worker: {error}");
        self.shared.told.say(Level::Warning, what);
    }
}
