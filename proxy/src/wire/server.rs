//! Turns TLS connections from other hosts into judged CONNECT streams to units of this host.
//!
//! Law: the server name says which unit answers, the port must be that unit's, the certificate says who calls. Without
//! all three no application hears of it.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::gather::{Gathering, LargeReads};
use super::{
    CONNECTION_WINDOW, FRAME, HANDSHAKE, HEAD, Heart, Link, SEND_BUFFER, STREAM_WINDOW, STREAMS, USER_TIMEOUT,
};
use crate::events::Event;
use crate::inbound;
use crate::sockopt;
use crate::stats::Gauge;
use crate::stream::WireStream;
use crate::tls::{ALPN, Peer, Trust, not_after, read_leaf};
use crate::worker::Worker;

/// Streams that a peer opens and resets before they were looked at, at most (CVE-2023-44487).
const RESET_STREAMS: usize = 256;

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
    /// The end of the client's certificate, seconds since the epoch.
    not_after: u64,
}

impl ServerLink {
    /// Says GOAWAY; open streams end in their own time.
    pub fn retire(&self) {
        self.link.retire();
    }

    /// Says GOAWAY when the client's certificate is over: it has another by now, or shall open nothing more.
    pub fn sweep(&self, now: u64) {
        if now >= self.not_after {
            self.retire();
        }
    }

    /// Ends the connection if its client is not trusted any more.
    pub fn recheck(&self, trust: &Trust) {
        if trust.client(&self.chain, UnixTime::now()).is_err() {
            self.link.kill();
        }
    }
}

/// Serves an accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, client: SocketAddr) {
    let handshake = timeout(HANDSHAKE, handshake(&worker, tcp, client.ip().to_canonical())).await;
    match handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok((tls, link)) => {
            worker.stats.add(Gauge::TlsHandshakes, 1);
            let link = Rc::new(link);
            worker.links.borrow_mut().push(Rc::downgrade(&link));
            if let Err(error) = run(&worker, Gathering::new(tls), &link).await {
                broke_off(&worker, &link, &error);
            }
            link.link.retire();
        }
        Err(_) => worker.stats.tls_failure("server_handshake"),
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

async fn handshake(worker: &Worker, tcp: TcpStream, client: IpAddr) -> io::Result<(Tls, ServerLink)> {
    sockopt::wire(&tcp, USER_TIMEOUT)?;
    let tls = worker.acceptor.accept(LargeReads::new(tcp)).await?;
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::other("the client does not speak h2"));
    }
    let sni = session.server_name().unwrap_or_default().to_ascii_lowercase();
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let leaf = chain.first().ok_or_else(|| io::Error::other("no certificate"))?;
    let peer = read_leaf(leaf).map_err(io::Error::other)?;
    let not_after = not_after(leaf).map_err(io::Error::other)?;
    Ok((
        tls,
        ServerLink {
            link: Rc::default(),
            peer,
            sni,
            client,
            chain,
            not_after,
        },
    ))
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
            self.respond.send_reset(Reason::CANCEL);
        }
    }
}
