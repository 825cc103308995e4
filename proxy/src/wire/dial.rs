//! Turns an endpoint into a new TLS connection to exactly the unit that must answer there, ready for streams.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::gather::{Gathering, LargeReads};
use super::{CONNECTION_WINDOW, FRAME, HANDSHAKE, HEAD, Link, SEND_BUFFER, STREAM_WINDOW, USER_TIMEOUT, drive};
use crate::peer::{Peer, Reason, read_leaf, why, why_tls};
use crate::stats::{Gauge, Held, WorkerStats};
use crate::tls::{ALPN, Expected, Trust, within_life};
use crate::traces::connection::Steps;
use crate::{descriptors, sockopt};

/// One address gets this long before the next is tried.
const CONNECT: Duration = Duration::from_secs(2);
/// Streams of one connection before its SETTINGS are known.
const FIRST_STREAMS: usize = 256;

/// A dial that has all it needs.
pub struct Prepared {
    /// Tried in this order.
    pub addresses: Vec<IpAddr>,
    /// Of the other host's proxy.
    pub port: u16,
    /// Of the socket.
    pub mark: u32,
    /// With the calling unit's SVID.
    pub tls: TlsConnector,
    /// Which unit is asked for.
    pub name: ServerName<'static>,
    /// By which the answer is judged.
    pub trust: Arc<Trust>,
    /// Who must answer.
    pub expected: Expected,
    /// Of the calling unit's SVID.
    pub serial: String,
    /// Of the calling unit's SVID.
    pub not_after: u64,
    /// Who is called, for a person.
    pub whom: String,
}

/// Why nobody could be reached.
#[derive(Clone)]
pub struct Failed {
    /// What kind of failure.
    pub kind: io::ErrorKind,
    /// For a person.
    pub why: String,
    /// It is this process that lacks what it takes to call anybody.
    pub is_ours: bool,
    /// Where a host was reached and TLS came to nothing.
    pub reason: Option<Reason>,
    /// How far it came.
    pub steps: Steps,
}

/// A TLS connection to another host, as long as it is open: who calls whom, and by what it is judged.
pub struct ClientLink {
    /// Its state.
    pub link: Rc<Link>,
    /// Of the SVID that it was made with.
    pub serial: String,
    /// Of the SVID that it was made with.
    pub not_after: u64,
    /// By which it was judged at its beginning.
    pub trust: Arc<Trust>,
    expected: Expected,
    chain: Vec<CertificateDer<'static>>,
    peer: Peer,
}

impl ClientLink {
    /// Why the peer is not trusted any more.
    pub fn distrust(&self, trust: &Trust) -> Option<(Reason, String)> {
        let judged = trust.server(&self.chain, within_life(&self.peer));
        let error = judged.and_then(|peer| Ok(self.expected.check(&peer)?)).err()?;
        let by = trust.revoked_by(&self.peer).map(|by| format!("revoked, {by}"));
        Some((Reason::of_tls(&error), by.unwrap_or_else(|| why_tls(&error))))
    }
}

/// A connection that takes streams. It closes once this is dropped and its streams have ended.
pub struct Connection {
    /// What outlives its place in the pool.
    pub secured: Rc<ClientLink>,
    /// Where streams are opened.
    pub requests: SendRequest<Bytes>,
    /// How it was made.
    pub steps: Steps,
    _held: Held,
}

impl Connection {
    /// Its state.
    pub fn link(&self) -> &Rc<Link> {
        &self.secured.link
    }

    /// Has the peer said that it takes no more streams (GOAWAY)? Idle ones are then no longer kept.
    pub fn is_refused(&self) -> bool {
        let ready = self
            .requests
            .clone()
            .poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }

    /// Does it take one more stream?
    pub fn has_room(&self) -> bool {
        self.link().streams() < self.requests.current_max_send_streams()
    }
}

/// Dials: TCP, TLS, HTTP/2. `vanished` is called if the peer falls silent later, in place of ending the connection: with
/// how many streams that breaks off, and why.
pub async fn dial(
    to: Prepared,
    stats: &WorkerStats,
    vanished: impl FnOnce(usize, io::Error) + 'static,
) -> Result<Connection, Failed> {
    let begun = Instant::now();
    let steps = |connected, failed| Steps {
        begun,
        connected,
        ended: Instant::now(),
        failed,
    };
    let failed = |error: io::Error| Failed {
        kind: error.kind(),
        why: error.to_string(),
        is_ours: descriptors::are_gone(&error),
        reason: None,
        steps: steps(None, Some(error.to_string())),
    };
    let addresses = sockopt::at(&to.addresses, to.port);
    let connecting = sockopt::connect_any(&to.whom, addresses, to.mark, CONNECT);
    let (tcp, address) = connecting.await.map_err(failed)?;
    sockopt::wire(&tcp, USER_TIMEOUT).map_err(failed)?;
    let (whom, connected) = (to.whom.clone(), Some((Instant::now(), address)));
    let ended = timeout(HANDSHAKE, handshake(tcp, to, stats, vanished)).await;
    let (secured, requests, held) = ended
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| {
            let why = format!("TLS with {whom}: {}", why(&error));
            Failed {
                kind: error.kind(),
                steps: steps(connected, Some(why.clone())),
                why,
                is_ours: false,
                reason: Some(Reason::of(&error)),
            }
        })?;
    Ok(Connection {
        secured,
        requests,
        steps: steps(connected, None),
        _held: held,
    })
}

async fn handshake(
    tcp: TcpStream,
    to: Prepared,
    stats: &WorkerStats,
    vanished: impl FnOnce(usize, io::Error) + 'static,
) -> io::Result<(Rc<ClientLink>, SendRequest<Bytes>, Held)> {
    let tls = to.tls.connect(to.name, LargeReads::new(tcp)).await?;
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::other(rustls::Error::NoApplicationProtocol));
    }
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let leaf = chain
        .first()
        .ok_or_else(|| io::Error::other(rustls::Error::NoCertificatesPresented))?;
    let peer = read_leaf(leaf).map_err(io::Error::other)?;
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
    stats.add(Gauge::TlsHandshakes, 1);
    let secured = Rc::new(ClientLink {
        link: Rc::default(),
        serial: to.serial,
        not_after: to.not_after,
        trust: to.trust,
        expected: to.expected,
        chain,
        peer,
    });
    secured.link.idle_since.set(Some(Instant::now()));
    let driven = secured.clone();
    tokio::task::spawn_local(async move {
        // Any other end is told by its streams.
        if let Err(error) = drive(connection, io, driven.link.clone()).await
            && is_silence(&error)
        {
            vanished(driven.link.streams(), error);
        }
    });
    let held = stats.hold(Gauge::Pooled);
    Ok((secured, requests, held))
}

/// Did the peer vanish, in place of ending the connection?
fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}
