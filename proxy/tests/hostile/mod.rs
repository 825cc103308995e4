//! An HTTP port behind its three doors, and an application that keeps every byte that arrives.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use hostmesh_proxy::http::outbound;
use hostmesh_proxy::plaintext;
use hostmesh_proxy::stream::Stream;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Timeouts;
use http::{Method, Request};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::ends::{self, Mesh, ORDERS, WEB, WEB_SNI, WEB_UNIT, soon};

/// The way by which a client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A unit's own proxy, the wire, the called unit's proxy.
    Outbound,
    /// A CONNECT stream of a client that is no proxy of ours.
    Wire,
    /// A process without identity that policy names.
    Plaintext,
}

/// One snapshot for both hosts: `orders` and plain text of the host itself may call `web`, nobody /secret.
fn config(mesh: &Mesh, host: &str, timeouts: Timeouts) -> Config {
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&mesh.ca.der);
    let port = mesh.ports[0];
    let unit = |name: &str, number: u32, id: &str, ports: serde_json::Value| {
        json!({
            "unit": format!("{name}.service"), "number": number, "spiffe_id": id, "service": name,
            "sni": format!("{name}.unit.mesh.example"), "ports": ports, "deliver": ["127.0.0.1"], "mode": "enforce",
            "allow": [{"rule": "web.service.toml:3", "callers": [ORDERS]}],
            "deny": [{"rule": "web.service.toml:7", "callers": [], "paths": ["/secret", "/secret/*"]}],
            "plaintext": [{"rule": "web.service.toml:9", "sources": ["local"], "ports": [port]}],
            "rule_default": format!("{name}.service.toml:no-allow"), "outbound": null,
            "rule_outbound_default": format!("{name}.service.toml:no-outbound"), "access_log": "errors", "trace": 0.0
        })
    };
    let units = match host {
        "h1" => vec![unit("orders", 7, ORDERS, json!([]))],
        _ => vec![unit(
            "web",
            8,
            WEB,
            json!([{"port": port, "protocol": "http", "client_address": "local"}]),
        )],
    };
    let snapshot = json!({
        "version": 1, "revision": "2", "trust_domain": "mesh.example", "host": host, "addresses": ["198.18.0.9"],
        "marks": {"unit": 0xfff, "outbound": 0x0100_0000, "proxy": 0x0200_0000, "inbound": 0x0400_0000},
        "listeners": {"outbound": 15001, "plaintext": 15006, "wire": 15008, "dns": 15053},
        "timeouts": timeouts, "trust_bundle": [bundle], "units": units,
        "services": [{
            "name": "web", "vips": ["240.240.0.2"], "ports": [{"port": 80, "target": port, "protocol": "http"}],
            "traffic": {"timeout_ms": 0, "retries": null, "balance": "least-request", "rule": ""},
            "endpoints": [{"unit": WEB_UNIT, "host": "h2", "spiffe_id": WEB, "sni": WEB_SNI,
                           "addresses": ["127.0.0.1"], "wire_port": mesh.wire.port()}]
        }]
    });
    Config::build(serde_json::from_value(snapshot).expect("a snapshot")).expect("a config")
}

/// What arrives at the application.
#[derive(Default)]
pub struct Arrivals {
    /// What it waits for, request by request: as soon as one is there, it answers.
    wanted: RefCell<VecDeque<Vec<u8>>>,
    /// Requests that came as wanted.
    pub whole: Cell<usize>,
    /// What is there of others.
    pub others: RefCell<Vec<Vec<u8>>>,
    /// Open connections.
    pub open: Cell<usize>,
    /// Body bytes of an answer that is not the usual one.
    pub more: Cell<usize>,
}

/// The mesh, the doors to it, the application behind it.
pub struct House {
    pub mesh: Mesh,
    pub arrivals: Rc<Arrivals>,
    plaintext: SocketAddr,
}

/// What the application answers, unless more is wanted.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn answer(tcp: &mut TcpStream, mut more: usize) -> std::io::Result<()> {
    if more == 0 {
        return tcp.write_all(ANSWER).await;
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {more}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await?;
    let piece = [b'.'; 16 * 1024];
    while more > 0 {
        let now = more.min(piece.len());
        tcp.write_all(&piece[..now]).await?;
        more -= now;
    }
    Ok(())
}

impl House {
    pub async fn new() -> Self {
        Self::with(Timeouts::default()).await
    }

    /// Where clients are waited for so long.
    pub async fn with(timeouts: Timeouts) -> Self {
        let mut mesh = Mesh::new().await;
        for (end, host) in [(&mesh.h1, "h1"), (&mesh.h2, "h2")] {
            end.shared()
                .set_config(config(&mesh, host, timeouts))
                .expect("in force");
        }
        // The same port, as a connection has that was redirected to the proxy.
        let door = TcpListener::bind(("127.0.0.2", mesh.ports[0])).await.expect("the port");
        let plaintext = door.local_addr().expect("an address");
        let worker = mesh.h2.worker.clone();
        spawn_local(async move {
            while let Ok((tcp, client)) = door.accept().await {
                spawn_local(plaintext::serve(worker.clone(), tcp, client));
            }
        });
        let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let application = std::mem::replace(&mut mesh.application, other);
        let arrivals = Rc::new(Arrivals::default());
        let seen = arrivals.clone();
        spawn_local(async move {
            while let Ok((tcp, _)) = application.accept().await {
                let seen = seen.clone();
                spawn_local(async move {
                    seen.open.set(seen.open.get() + 1);
                    serve(tcp, &seen).await;
                    seen.open.set(seen.open.get() - 1);
                });
            }
        });
        Self {
            mesh,
            arrivals,
            plaintext,
        }
    }

    /// The application shall answer these, in their order, and nothing else. The mesh adds who calls.
    pub fn expect(&self, door: Door, requests: &[Vec<u8>]) {
        let wanted = requests.iter().map(|request| with_peer(request, door)).collect();
        self.arrivals.wanted.replace(wanted);
        self.arrivals.whole.set(0);
        self.arrivals.others.borrow_mut().clear();
    }

    pub async fn client(&self, door: Door) -> Client {
        match door {
            Door::Outbound => {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let address = listener.local_addr().expect("an address");
                let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
                let (theirs, from) = theirs.expect("a connection");
                let worker = self.mesh.h1.worker.clone();
                let config = worker.shared.config().expect("a config");
                let unit = config.unit_by_number(7).expect("orders").clone();
                let called = SocketAddr::new([240, 240, 0, 2].into(), 80);
                spawn_local(outbound::serve(worker, unit, called, from.ip(), Stream::Tcp(theirs)));
                Client::tcp(ours.expect("connected"))
            }
            Door::Plaintext => Client::tcp(TcpStream::connect(self.plaintext).await.expect("connected")),
            Door::Wire => {
                let requests = soon(ends::client(&self.mesh).await.ready()).await;
                let uri = format!("{WEB_SNI}:{}", self.mesh.ports[0]);
                let connect = Request::builder()
                    .method(Method::CONNECT)
                    .uri(uri)
                    .body(())
                    .expect("CONNECT");
                let (response, send) = requests.expect("ready").send_request(connect, false).expect("sent");
                let response = soon(response).await.expect("a response");
                assert_eq!(response.status(), 200);
                Client::Wire(send, response.into_body())
            }
        }
    }
}

/// A client's connection.
pub enum Client {
    Tcp(TcpStream),
    Wire(h2::SendStream<Bytes>, h2::RecvStream),
}

impl Client {
    fn tcp(tcp: TcpStream) -> Self {
        tcp.set_nodelay(true).expect("an option");
        Self::Tcp(tcp)
    }

    /// What the proxy does not take any more is no error of the client's.
    pub async fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Tcp(tcp) => {
                let _refused = tcp.write_all(bytes).await;
            }
            Self::Wire(send, _) => {
                let _refused = send.send_data(Bytes::copy_from_slice(bytes), false);
            }
        }
    }

    /// The next bytes; `None` at the end, however it comes.
    pub async fn recv(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Tcp(tcp) => {
                let mut bytes = vec![0; 4096];
                let count = tcp.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
                bytes.truncate(count);
                Some(bytes)
            }
            Self::Wire(_, recv) => loop {
                let bytes = recv.data().await?.ok()?;
                let _gone = recv.flow_control().release_capacity(bytes.len());
                // The end comes as an empty frame.
                if !bytes.is_empty() {
                    return Some(bytes.to_vec());
                }
            },
        }
    }
}

/// What stands in the head beside what the client said.
fn with_peer(request: &[u8], door: Door) -> Vec<u8> {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 2;
    let (head, rest) = request.split_at(end);
    let peer = match door {
        Door::Plaintext => String::new(),
        Door::Outbound | Door::Wire => format!("x-hostmesh-peer: {ORDERS}\r\n"),
    };
    [head, b"traceparent: *\r\n", peer.as_bytes(), rest].concat()
}

/// With the trace's numbers, which chance makes, as a star.
fn without_numbers(bytes: &[u8]) -> Vec<u8> {
    let name = b"\r\ntraceparent: 00-";
    let numbers = name.len() - 3..name.len() + 52;
    match bytes.windows(name.len()).position(|part| part == name) {
        Some(at) if bytes.len() >= at + numbers.end => {
            [&bytes[..at + numbers.start], b"*", &bytes[at + numbers.end..]].concat()
        }
        _ => bytes.to_vec(),
    }
}

/// The application: it parses nothing.
async fn serve(mut tcp: TcpStream, arrivals: &Arrivals) {
    let mut seen = Vec::new();
    let mut bytes = vec![0; 128 * 1024];
    while let Ok(count @ 1..) = tcp.read(&mut bytes).await {
        seen.extend_from_slice(&bytes[..count]);
        let arrived = without_numbers(&seen);
        if arrivals.wanted.borrow().front() == Some(&arrived) {
            arrivals.wanted.borrow_mut().pop_front();
            arrivals.whole.set(arrivals.whole.get() + 1);
            seen.clear();
            if answer(&mut tcp, arrivals.more.get()).await.is_err() {
                return;
            }
        } else {
            let mut others = arrivals.others.borrow_mut();
            others.retain(|other| !arrived.starts_with(other));
            others.push(arrived);
        }
    }
}
