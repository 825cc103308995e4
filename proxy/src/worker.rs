//! What one worker has: its pools, its loads, its counters. Nothing of it is seen by another worker.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hostmesh_proxy_core::authorize::Decision;
use hostmesh_proxy_core::balance::Loads;
use hostmesh_proxy_core::config::{AccessLog, Unit};
use hostmesh_proxy_core::flag::{self, Flag};
use rustls::pki_types::UnixTime;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::drain;
use crate::events::Event;
use crate::helper::{Side, What};
use crate::http;
use crate::http::ext_authz::Gatekeepers;
use crate::http::token::Tokens;
use crate::listener::{self, Kind};
use crate::outbound;
use crate::overload::Pressure;
use crate::plaintext;
use crate::shared::Shared;
use crate::stats::{CodeClass, Gauge, Held, Key, Row, WorkerStats};
use crate::tcp::Relayed;
use crate::tls::Trust;
use crate::wire::client::Pool;
use crate::wire::idle::IdleStreams;
use crate::wire::server::{self, ServerLink};

/// Pools are looked through this often, and the watchdog is shown that the worker moves.
pub const SWEEP: Duration = Duration::from_secs(5);

/// One per thread, behind an `Rc`.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's counters.
    pub stats: WorkerStats,
    /// TLS connections to other hosts.
    pub pool: Rc<Pool>,
    /// HTTP streams between requests.
    pub idle: IdleStreams,
    /// Requests and connections in flight by endpoint, and which endpoints cannot be reached.
    pub loads: Rc<RefCell<Loads>>,
    /// Whether it comes late to what is ready.
    pub pressure: Pressure,
    /// Tokens that are believed.
    pub tokens: RefCell<Tokens>,
    /// Who is asked about requests.
    pub gatekeepers: Gatekeepers,
    /// Its side of the two that share their work; `None`: it is alone.
    pub side: Option<Side>,
    /// TLS connections from other hosts.
    pub links: RefCell<Vec<Weak<ServerLink>>>,
    /// By which they were judged last.
    trust: RefCell<Arc<Trust>>,
    /// Wakes what is open, to be judged again ([`crate::rejudge`]).
    pub policies_changed: Notify,
    /// Accepted connections that are not over.
    open: Cell<usize>,
    ended: Notify,
    random: Cell<u64>,
}

impl Worker {
    /// A worker with empty pools, which shares its work with nobody.
    pub fn new(shared: Arc<Shared>, seed: u64) -> Rc<Self> {
        Self::beside(shared, seed, None)
    }

    /// One of two.
    pub fn beside(shared: Arc<Shared>, seed: u64, side: Option<Side>) -> Rc<Self> {
        side.iter().for_each(Side::begin);
        let stats = shared.stats.worker();
        let loads = Rc::<RefCell<Loads>>::default();
        Rc::new(Self {
            pool: Rc::new(Pool::new(shared.clone(), stats.clone(), loads.clone())),
            idle: IdleStreams::default(),
            loads,
            pressure: Pressure::default(),
            tokens: RefCell::default(),
            gatekeepers: Gatekeepers::default(),
            side,
            links: RefCell::default(),
            trust: RefCell::new(shared.trust()),
            policies_changed: Notify::new(),
            open: Cell::new(0),
            ended: Notify::new(),
            random: Cell::new(seed | 1),
            stats,
            shared,
        })
    }

    /// A number for choices among equals (xorshift64, Marsaglia 2003); nothing secret depends on it.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }

    /// Serves a connection that was accepted.
    fn serve(self: &Rc<Self>, kind: Kind, tcp: TcpStream, client: SocketAddr) {
        let worker = self.clone();
        if kind == Kind::Outbound {
            // What is called says whether it may move later, or is to be given away now.
            return self.count(outbound::serve(worker, tcp, client));
        }
        let Some(tcp) = self.pass(kind, tcp, client) else {
            return;
        };
        if kind == Kind::Wire {
            self.count(server::serve(worker, tcp, client));
        } else {
            self.count(plaintext::serve(worker, tcp, client));
        }
    }

    /// Serves a connection that comes from another worker.
    pub fn serve_moved(self: &Rc<Self>, tcp: TcpStream, what: What) {
        match what {
            What::New(kind, client) => self.serve(kind, tcp, client),
            What::Moved(moved) => self.count(http::outbound::serve_moved(self.clone(), moved, tcp)),
        }
    }

    /// Serves a connection in a task of its own, counted as long as it lasts.
    fn count(self: &Rc<Self>, serving: impl Future<Output = ()> + 'static) {
        let open = Open::new(self.clone());
        tokio::task::spawn_local(async move {
            serving.await;
            drop(open);
        });
    }

    /// Accepted connections that are not over.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Waits until none is open.
    pub async fn all_ended(&self) {
        while self.open.get() > 0 {
            self.ended.notified().await;
        }
    }

    /// Keeps the pools as the config, the SVIDs and the time want them, until the process ends.
    pub async fn tend(self: Rc<Self>, index: usize) {
        let mut changes = self.shared.changes();
        let (mut draining, mut retired) = (self.shared.draining(), self.shared.retired());
        let mut beats = tokio::time::interval(SWEEP);
        let mut judged = 0;
        if self.shared.is_ending() {
            self.end(); // before this one was there to be told
        }
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    self.shared.beat(index);
                    self.pool.sweep();
                    self.loads.borrow_mut().sweep(Instant::now().into_std());
                    let now = UnixTime::now().as_secs();
                    self.each_link(|link| link.sweep(now).into_iter().for_each(|event| self.shared.events.emit(event)));
                    self.share_links();
                }
                Ok(()) = changes.changed() => {
                    self.pool.refresh();
                    self.recheck();
                    if let Some(config) = self.shared.other_policies(judged) {
                        judged = config.policies;
                        self.policies_changed.notify_waiters();
                    }
                }
                Ok(()) = draining.changed() => self.end(),
                Ok(()) = retired.changed() => self.end(),
            }
            self.idle.sweep();
            self.links.borrow_mut().retain(|link| link.strong_count() > 0);
        }
    }

    /// The process ends, or another has taken over.
    fn end(&self) {
        self.each_link(|link| link.retire());
        self.side.iter().for_each(Side::close);
    }

    /// Ends the wire connections whose client is not trusted any more, and those of units of this host that are revoked.
    fn recheck(&self) {
        let trust = self.shared.trust();
        if !Arc::ptr_eq(&trust, &self.trust.replace(trust.clone())) {
            self.each_link(|link| self.judge(link));
        }
    }

    /// A connection is there, judged by `trust`. What changed while it was made is taken into account.
    pub fn keep(&self, link: &Rc<ServerLink>, trust: &Arc<Trust>) {
        self.links.borrow_mut().push(Rc::downgrade(link));
        if !Arc::ptr_eq(trust, &self.shared.trust()) {
            self.judge(link);
        }
        if self.shared.is_ending() {
            link.retire();
        }
    }

    /// Ends the connection if it would not be let in now.
    fn judge(&self, link: &ServerLink) {
        let Some(config) = self.shared.config() else { return };
        if let Some((reason, event)) = link.recheck(&self.shared.trust(), &config) {
            self.stats.tls_failure("server", reason);
            self.shared.events.emit(event);
        }
    }

    fn each_link(&self, mut see: impl FnMut(&ServerLink)) {
        self.links
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|link| see(&link));
    }
}

/// An accepted connection, counted.
struct Open {
    worker: Rc<Worker>,
    _held: Held,
}

impl Open {
    fn new(worker: Rc<Worker>) -> Self {
        worker.open.set(worker.open.get() + 1);
        let held = worker.stats.hold(Gauge::Connections);
        Self { worker, _held: held }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.open.set(self.worker.open.get() - 1);
        self.worker.ended.notify_one();
    }
}

/// Starts a worker's thread with its listeners; a helper has none. It ends after [`Shared::drain`], `limit` later at most, and
/// says how many connections it cut off; or after [`Shared::retire`], when its last connection has ended.
pub fn start(
    shared: Arc<Shared>,
    index: usize,
    set: listener::Set,
    side: Option<Side>,
    limit: Duration,
) -> io::Result<thread::JoinHandle<io::Result<usize>>> {
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, run(shared, index, set, side, limit))
    })
}

async fn run(
    shared: Arc<Shared>,
    index: usize,
    set: listener::Set,
    side: Option<Side>,
    limit: Duration,
) -> io::Result<usize> {
    let mut draining = shared.draining();
    let seed = shared.started.elapsed().unwrap_or_default().subsec_nanos();
    let worker = Worker::beside(shared, (u64::from(seed) << 16) + index as u64, side);
    let mut accepting = Vec::new();
    for (kind, socket) in set {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let (worker, shared) = (worker.clone(), worker.shared.clone());
        accepting.push(tokio::task::spawn_local(listener::accept(
            socket,
            shared,
            move |tcp, client| worker.serve(kind, tcp, client),
        )));
    }
    accepting.push(tokio::task::spawn_local(worker.clone().take_over()));
    tokio::task::spawn_local(worker.clone().tend(index));
    let all_over = async {
        for task in accepting {
            task.await.map_err(io::Error::other)?;
        }
        worker.all_ended().await;
        Ok(0)
    };
    tokio::select! {
        // The sender lives in `Shared`, which this worker holds.
        _ = draining.wait_for(|draining| *draining) => Ok(drain::wait(&worker, limit).await),
        over = all_over => over,
    }
}

/// What a connection is about: in counters and in journals.
#[derive(Clone)]
pub struct About {
    /// The unit of this host whose journal it is.
    pub unit: Arc<Unit>,
    /// inbound | outbound | local.
    pub direction: &'static str,
    /// SPIFFE ID of the other side, `plaintext` or `passthrough`.
    pub peer: Arc<str>,
    /// The service called.
    pub service: Arc<str>,
    /// The port called.
    pub port: u16,
    /// The protocol's word.
    pub protocol: &'static str,
    /// The caller's address.
    pub client: IpAddr,
    /// The server that is asked for in TLS, where one is known.
    pub sni: Option<Arc<str>>,
    /// The route that a connection of TLS took, if it took one.
    pub route: Option<Arc<str>>,
}

impl About {
    /// Its counters, where no route of the called service's policy was taken.
    pub fn row(&self, worker: &Worker) -> Arc<Row> {
        self.row_of(worker, "")
    }

    /// Its counters by this route.
    pub fn row_of(&self, worker: &Worker, route: &str) -> Arc<Row> {
        worker.stats.handle(Key {
            unit: self.unit.unit.to_string(),
            direction: self.direction,
            peer: self.peer.to_string(),
            service: self.service.to_string(),
            route: route.to_owned(),
            port: self.port,
            protocol: self.protocol,
        })
    }

    /// An event of now about it.
    pub fn event(&self, kind: &'static str, verdict: &'static str, rule: &str, message: String) -> Event {
        Event {
            rule: rule.to_owned(),
            peer: self.peer.to_string(),
            service: self.service.to_string(),
            port: self.port,
            protocol: self.protocol,
            message,
            client: self.client.to_string(),
            sni: self.sni.as_deref().unwrap_or_default().to_owned(),
            route: self.route.as_deref().unwrap_or_default().to_owned(),
            ..Event::now(kind, &self.unit.unit, self.direction, verdict)
        }
    }

    /// Counts and records a refusal.
    pub fn denied(&self, worker: &Worker, rule: &str, flag: Flag, message: String) {
        worker.stats.denied(rule);
        let row = self.row(worker);
        row.record(CodeClass::Denied, 0, 0, 0, 0);
        row.flagged(flag);
        let event = self.event("denied", "deny", rule, message);
        worker.shared.events.emit(Event {
            flag: flag.word(),
            ..event
        });
    }

    /// Records what would be denied but for audit; nothing where it would not.
    pub fn audited(&self, worker: &Worker, decision: &Decision) {
        let Some(rule) = decision.would_deny() else { return };
        worker.stats.denied(rule);
        let event = self.event("denied", "audit-deny", rule, String::new());
        worker.shared.events.emit(event);
    }

    /// Records what is denied, and this rule would let in but for audit.
    pub fn would_be_let_in(&self, worker: &Worker, rule: &str) {
        worker.stats.denied(rule);
        let event = self.event("denied", "audit-allow", rule, String::new());
        worker.shared.events.emit(event);
    }

    /// Counts and records a connection that came to nothing.
    pub fn failed(&self, worker: &Worker, begun: Instant, flag: Option<Flag>, message: String) {
        let row = self.row(worker);
        row.record(CodeClass::Error, micros(begun), 0, 0, 0);
        flag.into_iter().for_each(|flag| row.flagged(flag));
        let event = self.event("error", "allow", "", message);
        worker.shared.events.emit(Event {
            duration_us: micros(begun),
            flag: flag::word(flag),
            ..event
        });
    }

    /// Counts a connection that was carried, and records it where the access log wants that.
    pub fn relayed(&self, worker: &Worker, begun: Instant, rule: &str, relayed: &Relayed) {
        let class = if relayed.result.is_ok() {
            CodeClass::Ok
        } else {
            CodeClass::Error
        };
        self.row(worker)
            .record(class, micros(begun), relayed.sent, relayed.received, 0);
        let wanted = match self.unit.access_log {
            AccessLog::All => true,
            AccessLog::Errors => relayed.result.is_err(),
            AccessLog::None => false,
        };
        worker.shared.events.record(wanted, &self.unit.unit, || {
            let message = match &relayed.result {
                Ok(()) => "connection ended".to_owned(),
                Err(error) => format!("connection broke off: {error}"),
            };
            let event = self.event("connection", "allow", rule, message);
            let (bytes_in, bytes_out) = (relayed.sent, relayed.received);
            Event {
                duration_us: micros(begun),
                bytes_in,
                bytes_out,
                tries: 1,
                ..event
            }
        });
    }
}

/// Microseconds since.
pub fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
