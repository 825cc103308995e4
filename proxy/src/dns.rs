//! Turns meshed units' DNS queries into answers: names of the mesh from the config in force, all others from whom they
//! were for.
//!
//! Law: a query of nobody known, and of a unit with `[outbound]` to whom it may not ask, is refused, never passed on; what
//! is passed on, and what comes back, is not touched.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hostmesh_proxy_core::config::Unit;
use hostmesh_proxy_core::dns::{Answer, answer};
use hostmesh_proxy_core::names::Asked;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use crate::descriptors;
use crate::dns_socket::{DnsSocket, Query};
use crate::events::Event;
use crate::lookups::may_ask;
use crate::shared::Shared;
use crate::sockopt;
use crate::stats::{Gauge, WorkerStats};
use crate::told::Level;

/// How long the one who was meant may take: what glibc's resolver waits (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);

/// After a query could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a TCP connection may say nothing (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(30);

/// Queries on their way to others at most; further ones are answered with a failure at once.
const MAX_IN_FLIGHT: usize = 1024;

/// Response codes of RFC 1035, section 4.1.1.
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// What becomes of a query.
enum Judged {
    /// The asker is told this, where there is anything to say.
    Answered(Gauge, Option<Vec<u8>>),
    /// It goes on to where it was going, from a socket with this mark; this unit asks.
    PassedOn(u32, Arc<Unit>),
}

fn judge(shared: &Shared, stats: &WorkerStats, query: &Query) -> Judged {
    let config = shared.config();
    let unit = config.as_ref().and_then(|config| config.unit_by_mark(query.mark));
    let (Some(config), Some(unit)) = (&config, unit) else {
        return Judged::Answered(Gauge::DnsFailed, failure(&query.bytes, REFUSED));
    };
    match answer(config, &query.bytes) {
        Answer::Reply(bytes) => Judged::Answered(Gauge::DnsAnswered, Some(bytes)),
        Answer::Forward => match outbound(unit, query.from.ip(), query.to, &query.bytes, shared, stats) {
            Ok(()) => Judged::PassedOn(config.marks.proxy, unit.clone()),
            Err(refusal) => Judged::Answered(Gauge::DnsFailed, refusal),
        },
    }
}

/// Serves the sockets in a thread of its own, until another process takes over: neither a large snapshot nor a slow disk, which the control side
/// meets, keeps anybody waiting for a name.
pub fn start(sockets: Vec<Socket>, shared: Arc<Shared>) -> io::Result<thread::JoinHandle<io::Result<()>>> {
    thread::Builder::new().name("names".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let mut serving = JoinSet::new();
            for socket in sockets {
                serving.spawn_local(serve_udp(socket, shared.clone(), shared.stats.worker()));
            }
            while let Some(ended) = serving.join_next().await {
                ended.map_err(io::Error::other)??;
            }
            // The sender lives in `Shared`.
            let mut retired = shared.retired();
            let _retired = retired.wait_for(|retired| *retired).await;
            Ok(())
        })
    })
}

/// Is the unit's policy for the query to go on? Else the refusal, counted and recorded; `None` for what can't be answered.
fn outbound(
    unit: &Unit,
    client: IpAddr,
    to: SocketAddr,
    query: &[u8],
    shared: &Shared,
    stats: &WorkerStats,
) -> Result<(), Option<Vec<u8>>> {
    let why = match may_ask(unit, to.ip(), query) {
        Ok(true) => return Ok(()),
        Ok(false) => String::new(),
        Err(error) => format!(": /etc/resolv.conf: {error}"),
    };
    let rule = &unit.rule_outbound_default;
    stats.denied(rule);
    let message = format!("{} may not ask {to}{why}", unit.unit);
    shared.events.emit(Event {
        peer: "passthrough".into(),
        port: to.port(),
        protocol: "dns",
        client: client.to_canonical().to_string(),
        ..Event::denied(&unit.unit, "outbound", rule, message)
    });
    Err(failure(query, REFUSED))
}

/// Serves one socket until another process takes over; who has asked before is still answered. Runs in a `LocalSet`.
pub async fn serve_udp(socket: Socket, shared: Arc<Shared>, stats: WorkerStats) -> io::Result<()> {
    let mut socket = DnsSocket::new(socket)?;
    let mut in_flight = JoinSet::<(Query, Option<Vec<u8>>)>::new();
    let mut retired = shared.retired();
    loop {
        let query = tokio::select! {
            _ = retired.wait_for(|retired| *retired) => break,
            query = socket.receive() => query,
            Some(done) = in_flight.join_next() => {
                if let Ok((query, Some(bytes))) = done {
                    reply(&socket, &query, &bytes, &shared);
                }
                continue;
            }
        };
        let query = match query {
            Ok(query) => query,
            // No memory for the datagram, most likely: the asker asks again.
            Err(error) => {
                shared
                    .told
                    .say(Level::Warning, format_args!("DNS query could not be taken: {error}"));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (gauge, bytes) = match judge(&shared, &stats, &query) {
            Judged::Answered(gauge, bytes) => (gauge, bytes),
            Judged::PassedOn(..) if in_flight.len() >= MAX_IN_FLIGHT => {
                (Gauge::DnsFailed, failure(&query.bytes, SERVFAIL))
            }
            Judged::PassedOn(mark, unit) => {
                let (shared, stats) = (shared.clone(), stats.clone());
                in_flight.spawn_local(async move {
                    let bytes = pass_on(&query, mark, &unit, &shared, &stats).await;
                    (query, bytes)
                });
                continue;
            }
        };
        stats.add(gauge, 1);
        if let Some(bytes) = bytes {
            reply(&socket, &query, &bytes, &shared);
        }
    }
    while let Some(done) = in_flight.join_next().await {
        if let Ok((query, Some(bytes))) = done {
            reply(&socket, &query, &bytes, &shared);
        }
    }
    Ok(())
}

fn reply(socket: &DnsSocket, query: &Query, bytes: &[u8], shared: &Shared) {
    if let Err(error) = socket.answer(query, bytes) {
        let what = format_args!("DNS answer to {} as {}: {error}", query.from, query.to);
        shared.told.say(Level::Warning, what);
    }
}

/// What the asker is told: the answer of whom it meant, a failure, or nothing when that one says nothing.
async fn pass_on(query: &Query, mark: u32, unit: &Unit, shared: &Shared, stats: &WorkerStats) -> Option<Vec<u8>> {
    match timeout(PATIENCE, exchange(query, mark)).await {
        Ok(Ok(bytes)) => {
            stats.add(Gauge::DnsForwarded, 1);
            // Before the unit has the answer and connects by it.
            if let Some(asked) = Asked::of(unit, &query.bytes) {
                shared.lookups.learn(unit, &asked, &bytes).await;
            }
            Some(bytes)
        }
        Ok(Err(_refused)) => {
            stats.add(Gauge::DnsFailed, 1);
            failure(&query.bytes, SERVFAIL)
        }
        Err(_elapsed) => {
            stats.add(Gauge::DnsFailed, 1);
            None
        }
    }
}

/// Asks by a socket of its own, so that the port is a random one (RFC 5452) and only that peer can answer.
async fn exchange(query: &Query, mark: u32) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(query.to), Type::DGRAM, Some(Protocol::UDP))?;
    descriptors::spare(&socket)?;
    socket.set_nonblocking(true)?;
    socket.set_mark(mark)?;
    let any: IpAddr = if query.to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(query.to).await?;
    socket.send(&query.bytes).await?;
    loop {
        // A refusal (ICMP) is shown as an error alone, which readiness for reading doesn't cover.
        if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error()
            && let Some(error) = socket.take_error()?
        {
            return Err(error);
        }
        let mut bytes = Vec::with_capacity(usize::from(u16::MAX));
        match socket.try_recv_buf(&mut bytes) {
            Ok(_) if bytes.get(..2) == query.bytes.get(..2) => return Ok(bytes),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The query's head and question as an answer with this code; none for what is no query.
fn failure(query: &[u8], code: u8) -> Option<Vec<u8>> {
    let head = query.first_chunk::<12>()?;
    if head[2] & 0x80 != 0 {
        return None;
    }
    let mut bytes = head.to_vec();
    bytes[2] |= 0x80;
    bytes[3] = (bytes[3] & 0x10) | 0x80 | code;
    bytes[6..12].fill(0);
    match question(query) {
        Some(question) if head[4..6] == [0, 1] => bytes.extend_from_slice(question),
        _ => bytes[4..6].fill(0),
    }
    Some(bytes)
}

/// The bytes of the first question: labels without compression, type, class.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = 12;
    loop {
        match usize::from(*query.get(end)?) {
            0 => return query.get(12..end + 5),
            length if length < 64 => end += 1 + length,
            _ => return None,
        }
    }
}

/// Serves an intercepted TCP connection to port 53 (RFC 7766) of a unit that is known: names of the mesh are answered,
/// the other queries go to `to` on one connection, and its answers come back as they are.
pub async fn serve_tcp(
    client: TcpStream,
    to: SocketAddr,
    unit: &Unit,
    shared: &Shared,
    stats: &WorkerStats,
) -> io::Result<()> {
    let from = client.peer_addr()?.ip();
    let (reading, mut writing) = client.into_split();
    let mut queries = Messages {
        stream: Some(reading),
        buffer: Vec::new(),
    };
    let mut answers = Messages {
        stream: None,
        buffer: Vec::new(),
    };
    let mut upstream = None;
    let mut open = HashMap::<[u8; 2], Asked>::new();
    loop {
        let next = tokio::select! {
            query = queries.next() => query?.map(Ok),
            answer = answers.next() => answer?.map(Err),
            () = tokio::time::sleep(IDLE) => return Ok(()),
        };
        match next {
            // Whoever has asked all may still wait for answers.
            None if queries.stream.take().is_some() && upstream.take().is_some() => {}
            None => return Ok(()),
            Some(Err(bytes)) => {
                stats.add(Gauge::DnsForwarded, 1);
                if let Some(asked) = bytes[2..].first_chunk().and_then(|id| open.remove(id)) {
                    shared.lookups.learn(unit, &asked, &bytes[2..]).await;
                }
                writing.write_all(&bytes).await?;
            }
            Some(Ok(query)) => {
                let config = shared
                    .config()
                    .ok_or_else(|| io::Error::other("no snapshot is in force"))?;
                if let Answer::Reply(bytes) = answer(&config, &query[2..]) {
                    stats.add(Gauge::DnsAnswered, 1);
                    writing.write_all(&framed(&bytes)?).await?;
                    continue;
                }
                if let Err(refusal) = outbound(unit, from, to, &query[2..], shared, stats) {
                    stats.add(Gauge::DnsFailed, 1);
                    let Some(refusal) = refusal else { return Ok(()) };
                    writing.write_all(&framed(&refusal)?).await?;
                    continue;
                }
                if upstream.is_none() {
                    let connected = timeout(PATIENCE, sockopt::connect(to, config.marks.proxy, None)).await??;
                    let (reading, writing) = connected.into_split();
                    answers.stream = Some(reading);
                    upstream = Some(writing);
                }
                if let Some(asked) = Asked::of(unit, &query[2..]).filter(|_| open.len() < MAX_IN_FLIGHT) {
                    open.insert(asked.id.to_be_bytes(), asked);
                }
                if let Some(upstream) = &mut upstream {
                    upstream.write_all(&query).await?;
                }
            }
        }
    }
}

fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Messages with their two bytes of length before them; what was read of one is kept when the wait for it is dropped.
struct Messages<R> {
    stream: Option<R>,
    buffer: Vec<u8>,
}

impl<R: AsyncReadExt + Unpin> Messages<R> {
    /// None at the end; without a stream it waits for ever.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(stream) = &mut self.stream else {
            return std::future::pending().await;
        };
        loop {
            if let Some(length) = self.buffer.first_chunk::<2>() {
                let end = 2 + usize::from(u16::from_be_bytes(*length));
                if self.buffer.len() >= end {
                    let rest = self.buffer.split_off(end);
                    return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
                }
            }
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
