//! Turns (source unit, endpoint, port) into a CONNECT stream on a pooled TLS connection.
//!
//! Law: a connection is used for the pair of identities that it was made for and no other. One whose SVID or bundle was
//! replaced takes no new streams.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hostmesh_proxy_core::balance::Loads;
use hostmesh_proxy_core::config::Endpoint;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use rustls::pki_types::{ServerName, UnixTime};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::dial::{self, ClientLink, Connection, Failed, Prepared};
use crate::events::Event;
use crate::peer::Reason;
use crate::shared::{Shared, Svids};
use crate::stats::WorkerStats;
use crate::stream::WireStream;
use crate::tls::{Expected, Trust, client_config};
use crate::told::Level;
use crate::traces::connection::Opening;

/// The place of an opaque connection in its trace.
pub const TRACEPARENT: &str = "traceparent";
/// The other side gets this long to reach its application.
const ANSWER: Duration = Duration::from_secs(10);
/// A connection without streams is closed after this.
const IDLE: Duration = Duration::from_secs(60);

/// Why there is no stream.
#[derive(Debug)]
pub enum OpenError {
    /// The calling unit has no SVID (yet).
    NoIdentity,
    /// No address of the endpoint's host could be reached, or its proxy is not who it must be.
    Unreachable(io::Error),
    /// This process lacks what it takes to dial anybody.
    Lacking(String),
    /// The other side's policy refused.
    Denied,
    /// The other side has no such unit or port.
    NotFound,
    /// The other side could not reach its application.
    Application,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIdentity => f.write_str("the unit has no certificate yet"),
            Self::Unreachable(error) => error.fmt(f),
            Self::Lacking(why) => f.write_str(why),
            Self::Denied => f.write_str("refused by the other side's policy"),
            Self::NotFound => f.write_str("the other side does not serve this port"),
            Self::Application => f.write_str("the other side cannot reach its application"),
        }
    }
}

impl std::error::Error for OpenError {}

#[derive(PartialEq, Eq, Hash, Clone)]
struct Pair {
    unit: Arc<str>,
    spiffe_id: Arc<str>,
    host: Arc<str>,
    called: Option<IpAddr>,
}

#[derive(Default)]
struct Peer {
    connections: Vec<Rc<Connection>>,
    /// All who need a connection wait for this one.
    dial: Option<Dial>,
}

/// What comes of a dial. It goes on when nobody waits any more: who comes next finds the connection.
type Dial = watch::Receiver<Option<Result<Rc<Connection>, Failed>>>;

/// The TLS connections of one worker.
pub struct Pool {
    shared: Arc<Shared>,
    stats: WorkerStats,
    peers: RefCell<HashMap<Pair, Peer>>,
    /// All that are open, also those that take no new streams.
    links: RefCell<Vec<(Pair, Weak<ClientLink>)>>,
    /// By which they were judged last.
    trust: RefCell<Arc<Trust>>,
    loads: Rc<RefCell<Loads>>,
}

/// A stream was not begun: the connection had come to its end. Another may do.
struct Stale;

impl Pool {
    /// An empty pool, which tells `loads` what can be reached.
    pub fn new(shared: Arc<Shared>, stats: WorkerStats, loads: Rc<RefCell<Loads>>) -> Self {
        let trust = RefCell::new(shared.trust());
        Self {
            shared,
            stats,
            peers: RefCell::default(),
            links: RefCell::default(),
            trust,
            loads,
        }
    }

    /// Opens a stream from `unit` to a port of the endpoint.
    pub async fn open(
        self: &Rc<Self>,
        unit: &Arc<str>,
        endpoint: &Endpoint,
        port: u16,
        opening: &Opening,
    ) -> Result<WireStream, OpenError> {
        let pair = Pair::of(unit, endpoint);
        let authority = format!("{}:{port}", endpoint.sni);
        let authority = Uri::from_maybe_shared(Bytes::from(authority))
            .map_err(|error| OpenError::Unreachable(io::Error::other(error)))?;
        for _ in 0..3 {
            let connection = self.connection(&pair, endpoint, opening).await?;
            match self.request(&connection, authority.clone(), opening).await {
                Ok(opened) => return opened,
                Err(Stale) => connection.link().retire(),
            }
            // A client hears only after its own handshake that it is refused (RFC 8446, section 4.4.2.4).
            if let Some((alert, is_new)) = connection.link().alert() {
                let text = format!("{} refuses our certificate: {alert}", pair.whom());
                if is_new {
                    self.refused(&pair, Reason::RefusedByPeer, text.clone());
                }
                return Err(OpenError::Unreachable(io::Error::other(text)));
            }
        }
        Err(OpenError::Unreachable(io::Error::other(
            "three connections ended before a stream was open",
        )))
    }

    /// Makes sure that there is a connection, and opens nothing on it.
    pub async fn reach(self: &Rc<Self>, unit: &Arc<str>, endpoint: &Endpoint) -> Result<(), OpenError> {
        let opening = Opening::default();
        self.connection(&Pair::of(unit, endpoint), endpoint, &opening)
            .await
            .map(drop)
    }

    async fn request(
        &self,
        connection: &Connection,
        authority: Uri,
        opening: &Opening,
    ) -> Result<Result<WireStream, OpenError>, Stale> {
        let lease = connection.link().lease(&self.stats);
        let Ok(ready) = timeout(ANSWER, connection.requests.clone().ready()).await else {
            let full = io::Error::new(io::ErrorKind::TimedOut, "the peer takes no more streams");
            return Ok(Err(OpenError::Unreachable(full)));
        };
        let mut requests = ready.map_err(|_| Stale)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority;
        if let Some(traceparent) = &opening.traceparent {
            let value = HeaderValue::from_bytes(traceparent).map_err(|_| Stale)?;
            request.headers_mut().insert(TRACEPARENT, value);
        }
        let (response, send) = requests.send_request(request, false).map_err(|_| Stale)?;
        let response = match timeout(ANSWER, response).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if unprocessed(&error) => return Err(Stale),
            Ok(Err(error)) => return Ok(Err(OpenError::Unreachable(io::Error::other(error)))),
            Err(_) => return Ok(Err(OpenError::Application)),
        };
        Ok(match response.status() {
            StatusCode::OK => Ok(WireStream::new(send, response.into_body(), lease)),
            StatusCode::FORBIDDEN => Err(OpenError::Denied),
            StatusCode::NOT_FOUND => Err(OpenError::NotFound),
            _ => Err(OpenError::Application),
        })
    }

    async fn connection(
        self: &Rc<Self>,
        pair: &Pair,
        endpoint: &Endpoint,
        opening: &Opening,
    ) -> Result<Rc<Connection>, OpenError> {
        loop {
            if let Some(connection) = self.pooled(pair) {
                return Ok(connection);
            }
            let under_way = self.peers.borrow().get(pair).and_then(|peer| peer.dial.clone());
            let is_ours = under_way.is_none();
            let mut dial = match under_way {
                Some(dial) => dial,
                None => self.begin(pair, endpoint, self.prepare(pair, endpoint)?),
            };
            let ended = dial.wait_for(Option::is_some).await;
            let outcome = ended.ok().and_then(|outcome| outcome.clone());
            if let Some(outcome) = outcome.as_ref().filter(|_| is_ours) {
                let steps = outcome.as_ref().map_or_else(|failed| &failed.steps, |made| &made.steps);
                opening.dialed.get_or_init(|| steps.clone());
            }
            match outcome {
                Some(Ok(connection)) if connection.has_room() || connection.link().is_retired() => {
                    return Ok(connection);
                }
                Some(Ok(_)) => {} // so many waited that one is not enough
                Some(Err(Failed { why, is_ours: true, .. })) => return Err(OpenError::Lacking(why)),
                Some(Err(Failed { kind, why, .. })) => return Err(OpenError::Unreachable(io::Error::new(kind, why))),
                None => return Err(OpenError::Unreachable(io::ErrorKind::Interrupted.into())),
            }
        }
    }

    /// Dials in a task of its own.
    fn begin(self: &Rc<Self>, pair: &Pair, endpoint: &Endpoint, prepared: Prepared) -> Dial {
        let (tell, dial) = watch::channel(None);
        self.peers.borrow_mut().entry(pair.clone()).or_default().dial = Some(dial.clone());
        let (pool, pair) = (self.clone(), pair.clone());
        // One address that was called says nothing of the endpoint.
        let id = endpoint.called.is_none().then_some(endpoint.id);
        let vanished = self.vanished(&pair, id);
        tokio::task::spawn_local(async move {
            let outcome = dial::dial(prepared, &pool.stats, vanished).await.map(Rc::new);
            match &outcome {
                Ok(connection) => {
                    learn(&pool.loads, id, true);
                    pool.keep(&pair, connection);
                }
                Err(Failed { is_ours: true, .. }) => {}
                Err(Failed { reason, why, .. }) => {
                    learn(&pool.loads, id, false);
                    if let Some(reason) = reason {
                        pool.refused(&pair, *reason, why.clone());
                    }
                }
            }
            if let Some(peer) = pool.peers.borrow_mut().get_mut(&pair) {
                peer.dial = None;
                peer.connections.extend(outcome.iter().cloned());
            }
            tell.send_replace(Some(outcome));
        });
        dial
    }

    /// What is done when a connection's peer has fallen silent: so many streams are broken off, for this reason.
    fn vanished(&self, pair: &Pair, id: Option<u64>) -> impl FnOnce(usize, io::Error) + use<> {
        let (shared, loads, whom) = (self.shared.clone(), self.loads.clone(), pair.whom());
        move |broken, error| {
            learn(&loads, id, false);
            let what = format_args!("{whom} is silent, {broken} streams are broken off: {error}");
            shared.told.say(Level::Warning, what);
        }
    }

    /// A connection is there. What changed while it was made is taken into account.
    fn keep(&self, pair: &Pair, connection: &Connection) {
        let link = &connection.secured;
        self.links.borrow_mut().push((pair.clone(), Rc::downgrade(link)));
        let trust = self.shared.trust();
        if !Arc::ptr_eq(&trust, &link.trust) {
            self.judge(pair, link, &trust);
        }
        if is_replaced(pair, link, &self.shared.svids(), &trust) {
            link.link.retire();
        }
    }

    fn pooled(&self, pair: &Pair) -> Option<Rc<Connection>> {
        let mut peers = self.peers.borrow_mut();
        let connections = &mut peers.get_mut(pair)?.connections;
        connections.retain(|connection| !connection.link().is_retired());
        connections.iter().find(|connection| connection.has_room()).cloned()
    }

    fn prepare(&self, pair: &Pair, endpoint: &Endpoint) -> Result<Prepared, OpenError> {
        let svids = self.shared.svids();
        let svid = svids.by_unit(&pair.unit).ok_or(OpenError::NoIdentity)?;
        let config = self.shared.config().ok_or(OpenError::NoIdentity)?;
        let trust = self.shared.trust();
        let expected = Expected {
            spiffe_id: endpoint.spiffe_id.clone(),
            host: endpoint.host.clone(),
        };
        let tls = client_config(trust.clone(), svid, expected.clone())
            .map_err(|error| OpenError::Unreachable(io::Error::other(error)))?;
        let name = ServerName::try_from(endpoint.sni.to_string())
            .map_err(|error| OpenError::Unreachable(io::Error::other(error)))?;
        Ok(Prepared {
            addresses: endpoint.addresses.clone(),
            port: endpoint.wire_port,
            mark: config.marks.proxy,
            tls: TlsConnector::from(Arc::new(tls)),
            name,
            trust,
            expected,
            serial: svid.serial.clone(),
            not_after: svid.not_after,
            whom: pair.whom(),
        })
    }

    /// Retires what is idle, and what was made with an SVID that is over.
    pub fn sweep(&self) {
        let now = UnixTime::now().as_secs();
        for peer in self.peers.borrow().values() {
            for connection in &peer.connections {
                let link = connection.link();
                let is_idle = link.idle_for().is_some_and(|idle| idle >= IDLE);
                if is_idle || now >= connection.secured.not_after || connection.is_refused() {
                    link.retire();
                }
            }
        }
        self.peers.borrow_mut().retain(|_, peer| {
            peer.connections.retain(|connection| !connection.link().is_retired());
            !peer.connections.is_empty() || peer.dial.is_some()
        });
        self.links.borrow_mut().retain(|(_, link)| link.strong_count() > 0);
    }

    /// Config or SVIDs changed: retires connections of an SVID that was replaced, ends those whose peer is not trusted.
    pub fn refresh(&self) {
        let trust = self.shared.trust();
        let svids = self.shared.svids();
        let before = self.trust.replace(trust.clone());
        let trust_changed = !Arc::ptr_eq(&trust, &before);
        for (pair, link) in self.links.borrow().iter() {
            let Some(secured) = link.upgrade() else { continue };
            if trust_changed {
                self.judge(pair, &secured, &trust);
            }
            if is_replaced(pair, &secured, &svids, &trust) {
                secured.link.retire();
            }
        }
        self.sweep();
    }

    /// Ends the connection if its peer is not trusted any more, or the calling unit is revoked.
    fn judge(&self, pair: &Pair, secured: &ClientLink, trust: &Trust) {
        let config = self.shared.config();
        let caller = config.as_ref().and_then(|config| config.unit_by_name(&pair.unit));
        let ended = if caller.is_some_and(|unit| unit.revoked) {
            Some((Reason::Revoked, format!("{} is revoked", pair.unit)))
        } else {
            secured.distrust(trust)
        };
        if let Some((reason, why)) = ended {
            secured.link.kill();
            self.refused(pair, reason, format!("connection to {} ended: {why}", pair.whom()));
        }
    }

    /// Counts and tells that the pair does not, or no longer, come together.
    fn refused(&self, pair: &Pair, reason: Reason, message: String) {
        self.stats.tls_failure("client", reason);
        self.shared.events.emit(Event {
            rule: reason.rule(),
            peer: pair.spiffe_id.to_string(),
            message,
            ..Event::now("wire", &pair.unit, "outbound", "deny")
        });
    }
}

impl Pair {
    fn of(unit: &Arc<str>, endpoint: &Endpoint) -> Self {
        Self {
            unit: unit.clone(),
            spiffe_id: endpoint.spiffe_id.clone(),
            host: endpoint.host.clone(),
            called: endpoint.called,
        }
    }

    /// Who is called, for a person.
    fn whom(&self) -> String {
        format!("{} on {}", self.spiffe_id, self.host)
    }
}

/// Did the peer say that it never saw the stream (RFC 9113, sections 6.8 and 8.7), or did the connection break before it
/// said anything? No byte of an application was sent, so nothing can happen twice.
pub fn unprocessed(error: &h2::Error) -> bool {
    error.is_io() || error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

/// Was the SVID or the bundle that it was made with replaced?
fn is_replaced(pair: &Pair, secured: &ClientLink, svids: &Svids, trust: &Trust) -> bool {
    let svid = svids.by_unit(&pair.unit);
    svid.is_none_or(|svid| svid.serial != secured.serial) || !trust.has_bundle_of(&secured.trust)
}

fn learn(loads: &RefCell<Loads>, id: Option<u64>, is_reached: bool) {
    let Some(id) = id else { return };
    if is_reached {
        loads.borrow_mut().reached(id);
    } else {
        loads.borrow_mut().unreachable(id, Instant::now().into_std());
    }
}
