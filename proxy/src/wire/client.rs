//! Turns (source unit, endpoint, port) into a CONNECT stream on a pooled TLS connection.
//!
//! Law: a connection is used for the pair of identities that it was made for and no other. One whose SVID or bundle was
//! replaced takes no new streams.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use hostmesh_proxy_core::config::Endpoint;
use http::{Method, Request, StatusCode, Uri};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::gather::{Gathering, LargeReads};
use super::{CONNECTION_WINDOW, FRAME, HANDSHAKE, HEAD, Link, SEND_BUFFER, STREAM_WINDOW, USER_TIMEOUT, drive};
use crate::shared::Shared;
use crate::sockopt;
use crate::stats::{Gauge, Held, WorkerStats};
use crate::stream::WireStream;
use crate::tls::{ALPN, Expected, Trust, client_config};

/// One address gets this long before the next is tried.
const CONNECT: Duration = Duration::from_secs(2);
/// The other side gets this long to reach its application.
const ANSWER: Duration = Duration::from_secs(10);
/// A connection without streams is closed after this.
const IDLE: Duration = Duration::from_secs(60);
/// Streams of one connection before its SETTINGS are known.
const FIRST_STREAMS: usize = 256;

/// Why there is no stream.
#[derive(Debug)]
pub enum OpenError {
    /// The calling unit has no SVID (yet).
    NoIdentity,
    /// No address of the endpoint's host could be reached, or its proxy is not who it must be.
    Unreachable(io::Error),
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

struct Connection {
    link: Rc<Link>,
    requests: SendRequest<Bytes>,
    serial: String,
    not_after: u64,
    expected: Expected,
    peer: Vec<CertificateDer<'static>>,
    _held: Held,
}

#[derive(Default)]
struct Peer {
    connections: Vec<Rc<Connection>>,
    /// All who need a connection wait for this one.
    dial: Option<Dial>,
}

/// What comes of a dial. It goes on when nobody waits any more: who comes next finds the connection.
type Dial = watch::Receiver<Option<Result<Rc<Connection>, Failed>>>;

/// Why nobody could be reached.
#[derive(Clone)]
struct Failed(io::ErrorKind, String);

/// A dial that has all it needs.
struct Prepared {
    addresses: Vec<IpAddr>,
    port: u16,
    mark: u32,
    tls: TlsConnector,
    name: ServerName<'static>,
    expected: Expected,
    serial: String,
    not_after: u64,
    /// For a person: which unit on which host.
    whom: String,
}

/// The TLS connections of one worker.
pub struct Pool {
    shared: Arc<Shared>,
    stats: WorkerStats,
    peers: RefCell<HashMap<Pair, Peer>>,
    trust: RefCell<Arc<Trust>>,
}

/// A stream was not begun: the connection had come to its end. Another may do.
struct Stale;

impl Pool {
    /// An empty pool.
    pub fn new(shared: Arc<Shared>, stats: WorkerStats) -> Self {
        let trust = RefCell::new(shared.trust());
        Self {
            shared,
            stats,
            peers: RefCell::default(),
            trust,
        }
    }

    /// Opens a stream from `unit` to a port of the endpoint.
    pub async fn open(
        self: &Rc<Self>,
        unit: &Arc<str>,
        endpoint: &Endpoint,
        port: u16,
    ) -> Result<WireStream, OpenError> {
        let pair = Pair {
            unit: unit.clone(),
            spiffe_id: endpoint.spiffe_id.clone(),
            host: endpoint.host.clone(),
            called: endpoint.called,
        };
        let authority = format!("{}:{port}", endpoint.sni);
        let authority = Uri::from_maybe_shared(Bytes::from(authority))
            .map_err(|error| OpenError::Unreachable(io::Error::other(error)))?;
        for _ in 0..3 {
            let connection = self.connection(&pair, endpoint).await?;
            match self.request(&connection, authority.clone()).await {
                Ok(opened) => return opened,
                Err(Stale) => connection.link.retire(),
            }
        }
        Err(OpenError::Unreachable(io::Error::other(
            "three connections ended before a stream was open",
        )))
    }

    async fn request(&self, connection: &Connection, authority: Uri) -> Result<Result<WireStream, OpenError>, Stale> {
        let lease = connection.link.lease(&self.stats);
        let Ok(ready) = timeout(ANSWER, connection.requests.clone().ready()).await else {
            let full = io::Error::new(io::ErrorKind::TimedOut, "the peer takes no more streams");
            return Ok(Err(OpenError::Unreachable(full)));
        };
        let mut requests = ready.map_err(|_| Stale)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority;
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

    async fn connection(self: &Rc<Self>, pair: &Pair, endpoint: &Endpoint) -> Result<Rc<Connection>, OpenError> {
        loop {
            if let Some(connection) = self.pooled(pair) {
                return Ok(connection);
            }
            let under_way = self.peers.borrow().get(pair).and_then(|peer| peer.dial.clone());
            let mut dial = match under_way {
                Some(dial) => dial,
                None => self.begin(pair, self.prepare(pair, endpoint)?),
            };
            let ended = dial.wait_for(Option::is_some).await;
            match ended.ok().and_then(|outcome| outcome.clone()) {
                Some(Ok(connection)) if connection.has_room() || connection.link.is_retired() => return Ok(connection),
                Some(Ok(_)) => {} // so many waited that one is not enough
                Some(Err(Failed(kind, why))) => return Err(OpenError::Unreachable(io::Error::new(kind, why))),
                None => return Err(OpenError::Unreachable(io::ErrorKind::Interrupted.into())),
            }
        }
    }

    /// Dials in a task of its own.
    fn begin(self: &Rc<Self>, pair: &Pair, prepared: Prepared) -> Dial {
        let (tell, dial) = watch::channel(None);
        self.peers.borrow_mut().entry(pair.clone()).or_default().dial = Some(dial.clone());
        let (pool, pair) = (self.clone(), pair.clone());
        tokio::task::spawn_local(async move {
            let outcome = pool.dial(prepared).await.map(Rc::new);
            let mut peers = pool.peers.borrow_mut();
            let peer = peers.entry(pair).or_default();
            peer.dial = None;
            peer.connections.extend(outcome.iter().cloned());
            tell.send_replace(Some(outcome));
        });
        dial
    }

    fn pooled(&self, pair: &Pair) -> Option<Rc<Connection>> {
        let mut peers = self.peers.borrow_mut();
        let connections = &mut peers.get_mut(pair)?.connections;
        connections.retain(|connection| !connection.link.is_retired());
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
        let tls =
            client_config(trust, svid, expected.clone()).map_err(|e| OpenError::Unreachable(io::Error::other(e)))?;
        let name = ServerName::try_from(endpoint.sni.to_string())
            .map_err(|error| OpenError::Unreachable(io::Error::other(error)))?;
        Ok(Prepared {
            addresses: endpoint.addresses.clone(),
            port: endpoint.wire_port,
            mark: config.marks.proxy,
            tls: TlsConnector::from(Arc::new(tls)),
            name,
            expected,
            serial: svid.serial.clone(),
            not_after: svid.not_after,
            whom: format!("{} on {}", endpoint.unit, endpoint.host),
        })
    }

    async fn dial(&self, to: Prepared) -> Result<Connection, Failed> {
        let failed = |error: io::Error| Failed(error.kind(), error.to_string());
        let tcp = connect(&to.addresses, to.port, to.mark).await.map_err(failed)?;
        sockopt::wire(&tcp, USER_TIMEOUT).map_err(failed)?;
        let whom = to.whom.clone();
        let ended = timeout(HANDSHAKE, self.handshake(tcp, to)).await;
        ended
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| {
                self.stats.tls_failure("client_handshake");
                Failed(error.kind(), format!("TLS with {whom}: {error}"))
            })
    }

    async fn handshake(&self, tcp: TcpStream, to: Prepared) -> io::Result<Connection> {
        let tls = to.tls.connect(to.name, LargeReads::new(tcp)).await?;
        let session = tls.get_ref().1;
        if session.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("the other side does not speak h2"));
        }
        let peer = session.peer_certificates().unwrap_or_default().to_vec();
        let io = Gathering::new(tls);
        let (requests, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEAD)
            .initial_max_send_streams(FIRST_STREAMS)
            .handshake(io.clone())
            .await
            .map_err(io::Error::other)?;
        self.stats.add(Gauge::TlsHandshakes, 1);
        let link = Rc::new(Link::default());
        link.idle_since.set(Some(Instant::now()));
        tokio::task::spawn_local(drive(connection, io, link.clone()));
        let held = self.stats.hold(Gauge::Pooled);
        Ok(Connection {
            link,
            requests,
            serial: to.serial,
            not_after: to.not_after,
            expected: to.expected,
            peer,
            _held: held,
        })
    }

    /// Retires what is idle, and what was made with an SVID that is over.
    pub fn sweep(&self) {
        let now = UnixTime::now().as_secs();
        self.each(|_, connection| {
            let link = &connection.link;
            let since = link.idle_since.get().filter(|_| link.streams() == 0);
            let is_old = now >= connection.not_after || since.is_some_and(|since| since.elapsed() >= IDLE);
            if is_old || connection.is_refused() {
                link.retire();
            }
        });
        self.peers.borrow_mut().retain(|_, peer| {
            peer.connections.retain(|connection| !connection.link.is_retired());
            !peer.connections.is_empty() || peer.dial.is_some()
        });
    }

    /// Config or SVIDs changed: retires connections of an SVID that was replaced, ends those whose peer is not trusted.
    pub fn refresh(&self) {
        let trust = self.shared.trust();
        let svids = self.shared.svids();
        let bundle_changed = !Arc::ptr_eq(&trust, &self.trust.replace(trust.clone()));
        self.each(|pair, connection| {
            if bundle_changed && !connection.is_trusted(&trust) {
                connection.link.kill();
            } else if bundle_changed
                || svids
                    .by_unit(&pair.unit)
                    .is_none_or(|svid| svid.serial != connection.serial)
            {
                connection.link.retire();
            }
        });
        self.sweep();
    }

    fn each(&self, mut see: impl FnMut(&Pair, &Connection)) {
        for (pair, peer) in self.peers.borrow().iter() {
            peer.connections.iter().for_each(|connection| see(pair, connection));
        }
    }
}

impl Connection {
    /// Has the peer said that it takes no more streams (GOAWAY)? Idle ones are then no longer kept.
    fn is_refused(&self) -> bool {
        let ready = self
            .requests
            .clone()
            .poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.link.streams() < self.requests.current_max_send_streams()
    }

    fn is_trusted(&self, trust: &Trust) -> bool {
        trust
            .server(&self.peer, UnixTime::now())
            .is_ok_and(|peer| self.expected.check(&peer).is_ok())
    }
}

/// Did the peer say that it never saw the stream (RFC 9113, sections 6.8 and 8.7), or did the connection break before it
/// said anything? No byte of an application was sent, so nothing can happen twice.
fn unprocessed(error: &h2::Error) -> bool {
    error.is_io() || error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

async fn connect(addresses: &[IpAddr], port: u16, mark: u32) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the endpoint has no address");
    for address in addresses {
        let to = SocketAddr::new(*address, port);
        match timeout(CONNECT, sockopt::connect(to, mark, None)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{to}: {error}")),
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{to}: no answer within {CONNECT:?}")),
        }
    }
    Err(last)
}
