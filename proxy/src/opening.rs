//! Watches both sides of a new connection until one of them has told what is spoken.
//!
//! Law: nobody waits for who does not speak. Whichever side speaks first is heard; what may still become something known
//! goes on to the server meanwhile, who may answer it. For a limited time only, a ClientHello that has begun is waited for to
//! its end, so is a first line where there is no server yet, and the client where the server has begun as HTTP/2's do.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hostmesh_proxy_core::config::Protocol;
use hostmesh_proxy_core::opening::{self, Opening};
use rustls::server::Acceptor;
use tokio::time::{Instant, sleep_until};

use crate::http::conn::Conn;
use crate::http::session;
use crate::rejudge::Denial;
use crate::tcp::Relayed;

/// A ClientHello has at most so many bytes; rustls itself takes no more of a message of the handshake.
const LONGEST_HELLO: usize = 64 * 1024;

/// What a connection has told.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// The client speaks HTTP, in this version.
    Http(Protocol),
    /// The client asks for TLS with the server of this name; empty: it names none.
    Tls(Arc<str>),
    /// Neither, or the server speaks first.
    Opaque,
}

impl Told {
    /// The protocol's word.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Http(protocol) => *protocol,
            Self::Tls(_) => Protocol::Tls,
            Self::Opaque => Protocol::Tcp,
        }
    }

    /// The name of the server that is asked for.
    pub fn sni(&self) -> Option<Arc<str>> {
        match self {
            Self::Tls(name) => Some(name.clone()),
            Self::Http(_) | Self::Opaque => None,
        }
    }
}

/// What was seen. The client's bytes are all to be read again.
#[derive(Debug)]
pub struct Seen {
    /// What was told.
    pub told: Told,
    /// So many of the client's bytes the server has had.
    pub sent: usize,
}

/// Watches a connection on a port that speaks `protocol`: `auto`, or `tls`, where HTTP is not looked for. Without a server
/// the client alone tells. `limit`: for what has to come to its end, from the first byte.
pub async fn watch(
    client: &mut Conn,
    server: Option<&mut Conn>,
    protocol: Protocol,
    limit: Duration,
) -> io::Result<Seen> {
    let mut watching = Watching {
        client,
        server,
        bytes: BytesMut::new(),
        sent: 0,
        limit,
        end: None,
    };
    let told = watching.told(protocol == Protocol::Auto).await;
    let Watching {
        client, bytes, sent, ..
    } = watching;
    client.put_back(bytes.freeze());
    Ok(Seen { told: told?, sent })
}

struct Watching<'a> {
    client: &'a mut Conn,
    server: Option<&'a mut Conn>,
    /// The client's, from the first.
    bytes: BytesMut,
    sent: usize,
    limit: Duration,
    /// When it ends.
    end: Option<Instant>,
}

impl Watching<'_> {
    async fn told(&mut self, reads_http: bool) -> io::Result<Told> {
        loop {
            match opening::read(&self.bytes) {
                Opening::Undecided => self.send_on().await?,
                Opening::Tls => return self.server_name().await,
                Opening::Http1 if reads_http => return Ok(Told::Http(Protocol::Http)),
                Opening::Http2 if reads_http => return Ok(Told::Http(Protocol::Http2)),
                Opening::Http1 | Opening::Http2 | Opening::Opaque => return Ok(Told::Opaque),
            }
            if !self.more(self.server.is_none()).await? {
                return Ok(Told::Opaque);
            }
        }
    }

    /// More of the client's bytes. `false`: the server has spoken, one of them has ended, or, where there is a limit, it is
    /// over.
    async fn more(&mut self, is_limited: bool) -> io::Result<bool> {
        let end = self.end.filter(|_| is_limited);
        let over = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => pending().await,
            }
        };
        let server = &mut self.server;
        let spoken = async {
            match server {
                Some(server) => server.spoken().await,
                None => pending().await,
            }
        };
        let more = tokio::select! {
            biased;
            spoken = spoken => {
                let is_http2 = opening::is_http2_server(&spoken?);
                if is_http2 {
                    // Its client speaks without waiting for this.
                    self.server = None;
                    self.end.get_or_insert_with(|| Instant::now() + self.limit);
                }
                return Ok(is_http2);
            }
            more = self.client.recv() => more?,
            () = over => return Ok(false),
        };
        self.end.get_or_insert_with(|| Instant::now() + self.limit);
        more.iter().for_each(|more| self.bytes.extend_from_slice(more));
        Ok(more.is_some())
    }

    /// The server gets what nothing can be told by yet: it may be waiting for just that.
    async fn send_on(&mut self) -> io::Result<()> {
        if let Some(server) = &mut self.server
            && self.sent < self.bytes.len()
        {
            let fresh = Bytes::copy_from_slice(&self.bytes[self.sent..]);
            self.sent = self.bytes.len();
            server.send(fresh).await?;
        }
        Ok(())
    }

    /// Reads on to the end of the ClientHello.
    async fn server_name(&mut self) -> io::Result<Told> {
        let (mut acceptor, mut read) = (Acceptor::default(), 0);
        loop {
            match server_name(&mut acceptor, &self.bytes[read..]) {
                Some(name) => return Ok(name.map_or(Told::Opaque, Told::Tls)),
                None if self.bytes.len() > LONGEST_HELLO => return Ok(Told::Opaque),
                None => read = self.bytes.len(),
            }
            if !self.more(true).await? {
                return Ok(Told::Opaque);
            }
        }
    }
}

/// The name that a ClientHello asks for, empty if it asks for none. `None`: more bytes are needed; `Some(None)`: it is no
/// ClientHello.
pub fn server_name(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Option<Option<Arc<str>>> {
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Some(None);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let name = hello.server_name().unwrap_or_default();
                return Some(Some(name.to_ascii_lowercase().into()));
            }
            Err(_) => return Some(None),
        }
    }
    None
}

/// Relays a connection that was watched, to the server that it was watched with.
pub async fn relay(
    mut client: Conn,
    server: Conn,
    sent: usize,
    idle: Option<Duration>,
    denied: Pin<&mut impl Future<Output = Denial>>,
) -> Relayed {
    let mut rest = client.buffered();
    rest.advance(sent);
    client.put_back(rest);
    let relayed = session::tunnel(client, server, idle, denied).await;
    Relayed {
        sent: relayed.sent + sent as u64,
        ..relayed
    }
}

#[cfg(test)]
#[path = "opening_tests.rs"]
mod tests;
