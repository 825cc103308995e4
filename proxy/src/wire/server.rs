//! Turns TLS connections from other hosts into judged CONNECT streams to units of this host.
//!
//! Law: the server name says which unit answers, the port must be that unit's, the certificate says who calls. Without
//! all three no application hears of it.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hostmesh_proxy_core::config::Config;
use http::{Method, Request, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::client::TRACEPARENT;
use super::gather::{Gathering, LargeReads};
use super::{
    CONNECTION_WINDOW, FRAME, HANDSHAKE, HEAD, Heart, Link, SEND_BUFFER, STREAM_WINDOW, STREAMS, USER_TIMEOUT,
};
use crate::events::Event;
use crate::inbound;
use crate::peer::{self, Peer, Reason, Seen, read_leaf, why_tls};
use crate::sockopt;
use crate::stats::Gauge;
use crate::stream::WireStream;
use crate::tls::{ALPN, Trust, server_config, within_life};
use crate::worker::Worker;

/// Streams that a peer opens and resets before they were looked at, at most (CVE-2023-44487).
const RESET_STREAMS: usize = 256;
/// Who was refused gets this long to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// And may send so much more meanwhile.
const FAREWELL_BYTES: u64 = 64 * 1024;

type Tls = tokio_rustls::server::TlsStream<LargeReads>;

/// A TLS connection from another host.
pub struct ServerLink {
    link: Rc<Link>,
    /// Who calls.
    pub peer: Peer,
    /// The server name that it asked for, in lower case.
    pub sni: String,
    /// The address that the wire shows.
    pub client: IpAddr,
    chain: Vec<CertificateDer<'static>>,
}

impl ServerLink {
    /// Says GOAWAY; open streams end in their own time.
    pub fn retire(&self) {
        self.link.retire();
    }

    /// Has it streams?
    pub fn is_used(&self) -> bool {
        self.link.streams() > 0
    }

    /// Was that said?
    pub fn is_retired(&self) -> bool {
        self.link.is_retired()
    }

    /// Says GOAWAY when the client's certificate is over: it has another by now, or shall open nothing more. What to tell.
    pub fn sweep(&self, now: u64) -> Option<Event> {
        if now < self.peer.not_after || self.is_retired() {
            return None;
        }
        self.retire();
        let text = "certificate is over: its connection opens nothing more";
        Some(self.told("allow", Reason::Expired, text))
    }

    /// Ends the connection if its client is not trusted any more, or its unit is revoked. Why, and what to tell.
    pub fn recheck(&self, trust: &Trust, config: &Config) -> Option<(Reason, Event)> {
        let revoked = config.unit_by_sni(&self.sni).is_some_and(|unit| unit.revoked);
        let (reason, text) = match trust.client(&self.chain, within_life(&self.peer)) {
            Ok(_) if revoked => (Reason::Revoked, "connection ended: the called unit is revoked".into()),
            Ok(_) => return None,
            Err(error) => {
                let by = trust
                    .revoked_by(&self.peer)
                    .map_or_else(|| why_tls(&error), |by| format!("revoked, {by}"));
                (Reason::of_tls(&error), format!("connection ended: {by}"))
            }
        };
        self.link.kill();
        Some((reason, self.told("deny", reason, &text)))
    }

    fn told(&self, verdict: &'static str, reason: Reason, text: &str) -> Event {
        Event {
            rule: reason.rule(),
            peer: self.peer.spiffe_id.to_string(),
            client: self.client.to_string(),
            message: format!("{} from {}: {text}", self.peer.spiffe_id, self.client),
            ..Event::now("wire", "", "inbound", verdict)
        }
    }
}

/// Serves an accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, client: SocketAddr) {
    let (seen, client) = (Arc::<Seen>::default(), client.ip().to_canonical());
    let trust = worker.shared.trust();
    let handshake = timeout(HANDSHAKE, handshake(&worker, &seen, tcp, client)).await;
    match handshake.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())) {
        Ok((tls, link)) => {
            worker.stats.add(Gauge::TlsHandshakes, 1);
            let link = Rc::new(link);
            worker.keep(&link, &trust);
            if let Err(error) = run(&worker, Gathering::new(tls), &link).await {
                broke_off(&worker, &link, &error);
            }
            link.link.retire();
        }
        Err(Failed(error, tcp)) => {
            refused(&worker, &seen, client, &error);
            if let Some(tcp) = tcp {
                farewell(tcp).await;
            }
        }
    }
}

/// Counts and tells a peer that broke the rules of HTTP/2. How another connection ends is told by its streams.
fn broke_off(worker: &Worker, link: &ServerLink, error: &io::Error) {
    let rules = error.get_ref().and_then(|error| error.downcast_ref::<h2::Error>());
    if !rules.is_some_and(h2::Error::is_library) {
        return;
    }
    worker.stats.add(Gauge::WireViolations, 1);
    let config = worker.shared.config();
    let unit = config.as_ref().and_then(|config| config.unit_by_sni(&link.sni));
    let message = format!(
        "{} at {} speaks HTTP/2 as it must not: {error}",
        link.peer.spiffe_id, link.client
    );
    worker.shared.events.emit(Event {
        peer: link.peer.spiffe_id.to_string(),
        client: link.client.to_string(),
        ..Event::error(unit.map_or("", |unit| &unit.unit), "inbound", message)
    });
}

/// Counts and tells a handshake that came to nothing. Who only knocked and left is counted.
fn refused(worker: &Worker, seen: &Seen, client: IpAddr, error: &io::Error) {
    let unknown = seen.nobody.get().is_some();
    let reason = if unknown {
        Reason::UnknownName
    } else {
        Reason::of(error)
    };
    worker.stats.tls_failure("server", reason);
    if reason == Reason::Closed {
        return;
    }
    let sni = seen.sni.get().map(String::as_str).unwrap_or_default();
    let who = seen.claim.get().map_or_else(
        || format!("somebody at {client}"),
        |claim| {
            let id = if claim.spiffe_id.is_empty() {
                "nobody"
            } else {
                &claim.spiffe_id
            };
            format!("{client}, whose certificate says {id} ({})", claim.details)
        },
    );
    let why = if unknown {
        format!("no unit with a certificate has the name {sni:?}")
    } else {
        peer::why(error)
    };
    let unit = worker
        .shared
        .config()
        .and_then(|config| Some(config.unit_by_sni(sni)?.unit.to_string()));
    worker.shared.events.emit(Event {
        rule: reason.rule(),
        peer: seen
            .claim
            .get()
            .map(|claim| claim.spiffe_id.clone())
            .unwrap_or_default(),
        client: client.to_string(),
        message: format!("handshake refused: {who}: {why}"),
        ..Event::now("wire", &unit.unwrap_or_default(), "inbound", "deny")
    });
}

/// Why there is no connection, and the socket where the other side was told.
struct Failed(io::Error, Option<LargeReads>);

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(error, None)
    }
}

async fn handshake(
    worker: &Worker,
    seen: &Arc<Seen>,
    tcp: TcpStream,
    client: IpAddr,
) -> Result<(Tls, ServerLink), Failed> {
    sockopt::wire(&tcp, USER_TIMEOUT)?;
    let config = server_config(&worker.shared, seen).map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let accepted = acceptor.accept(LargeReads::new(tcp)).into_fallible().await;
    let tls = accepted.map_err(|(error, tcp)| Failed(error, Some(tcp)))?;
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::other(rustls::Error::NoApplicationProtocol).into());
    }
    let sni = session.server_name().unwrap_or_default().to_ascii_lowercase();
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let leaf = chain
        .first()
        .ok_or_else(|| io::Error::other(rustls::Error::NoCertificatesPresented))?;
    let peer = read_leaf(leaf).map_err(io::Error::other)?;
    Ok((
        tls,
        ServerLink {
            link: Rc::default(),
            peer,
            sni,
            client,
            chain,
        },
    ))
}

/// Lets the other side read why it was refused: closed with bytes unread, the connection would be reset over the alert.
async fn farewell(mut tcp: LargeReads) {
    let read = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    // Whether it listened is its own affair.
    let _heard = timeout(FAREWELL, read).await;
}

async fn run(worker: &Rc<Worker>, io: Gathering<Tls>, link: &Rc<ServerLink>) -> io::Result<()> {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEAD)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .handshake::<_, Bytes>(io.clone());
    let mut connection = timeout(HANDSHAKE, handshake).await?.map_err(io::Error::other)?;
    let mut heart = connection.ping_pong().map(|pings| Heart::new(io.clone(), pings));
    let mut said_goaway = false;
    let mut poll = |cx: &mut Context<'_>| {
        if let Poll::Ready(error) = link.link.poll_killed(cx) {
            return Poll::Ready(Err(error));
        }
        if link.link.is_retired() && !std::mem::replace(&mut said_goaway, true) {
            connection.graceful_shutdown();
        }
        if let Some(Poll::Ready(error)) = heart.as_mut().map(|heart| heart.poll_dead(cx)) {
            return Poll::Ready(Err(error));
        }
        match connection.poll_accept(cx) {
            Poll::Ready(accepted) => return Poll::Ready(accepted.transpose().map_err(io::Error::other)),
            Poll::Pending => {}
        }
        match io.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    };
    while let Some((request, respond)) = poll_fn(&mut poll).await? {
        let call = Call {
            link: link.clone(),
            request,
            respond,
        };
        let worker = worker.clone();
        tokio::task::spawn_local(async move { inbound::answer(&worker, call).await });
    }
    Ok(())
}

/// An accepted CONNECT that was not answered yet.
pub struct Call {
    /// The connection that it came on.
    pub link: Rc<ServerLink>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

impl Call {
    /// The port that is called; `None` where the request is no CONNECT to the unit of the server name.
    ///
    /// `is_own`: is this address one of this host's?
    pub fn port(&self, is_own: impl Fn(IpAddr) -> bool) -> Option<u16> {
        let authority = self.request.uri().authority()?;
        // A user in the authority is nothing that a CONNECT has (RFC 9110, section 9.3.6).
        if self.request.method() != Method::CONNECT
            || self.request.extensions().get::<h2::ext::Protocol>().is_some()
            || authority.as_str().contains('@')
        {
            return None;
        }
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_ours = host.eq_ignore_ascii_case(&self.link.sni) || address.is_ok_and(is_own);
        authority.port_u16().filter(|_| is_ours)
    }

    /// The place of the connection in its trace, as the caller's proxy tells it.
    pub fn traceparent(&self) -> Option<&[u8]> {
        Some(self.request.headers().get(TRACEPARENT)?.as_bytes())
    }

    /// What was asked for, for a person.
    pub fn asked(&self) -> String {
        format!("{} {}", self.request.method(), self.request.uri())
    }

    /// Lets the stream begin.
    pub fn accept(mut self, worker: &Worker) -> io::Result<WireStream> {
        let lease = self.link.link.lease(&worker.stats);
        let send = self
            .respond
            .send_response(Response::new(()), false)
            .map_err(io::Error::other)?;
        Ok(WireStream::new(send, self.request.into_body(), lease))
    }

    /// Answers with a status and nothing else.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if self.respond.send_response(response, true).is_err() {
            self.respond.send_reset(h2::Reason::CANCEL);
        }
    }
}
