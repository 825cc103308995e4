//! The relay with real sockets: a client, the relay, and an application whose every byte the test says.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::{InboundRule, Retries, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::{inbound, outbound};
use crate::events::{Event, EventSource};
use crate::fixture;
use crate::shared::Shared;
use crate::stats::Collected;
use crate::stream::Stream;
use crate::traces::{Finished, SpanSource};
use crate::worker::{About, Worker};

mod auto;
mod judged;
mod moved;
mod rejudged;
mod relayed;
mod retried;
mod routed;
mod traced;

const LIMIT: Duration = Duration::from_secs(10);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ORDERS: &str = "spiffe://mesh.local/unit/orders";

/// A worker, and the application of nginx.service on this host, which orders.service may call by a VIP.
struct World {
    worker: Rc<Worker>,
    shared: Arc<Shared>,
    events: Mutex<EventSource>,
    spans: Mutex<SpanSource>,
    application: TcpListener,
    snapshot: Snapshot,
}

impl World {
    async fn new(change: impl FnOnce(&mut Snapshot)) -> Self {
        let application = TcpListener::bind((LOCALHOST, 0)).await.expect("a port");
        let port = application.local_addr().expect("its address").port();
        let mut snapshot = fixture::snapshot(&fixture::Authority::new());
        let [nginx, orders] = &mut snapshot.units[..] else {
            panic!("the vector has two units")
        };
        nginx.deliver = vec!["127.0.0.1".into()];
        nginx.ports[0].port = port;
        nginx.ports[0].client_address = "local".into();
        nginx.access_log = "all".into();
        orders.outbound = None;
        let service = snapshot
            .services
            .iter_mut()
            .find(|service| service.name == "nginx")
            .expect("nginx");
        service.ports[0].target = port;
        service.endpoints.retain(|endpoint| endpoint.host == "h1");
        change(&mut snapshot);
        let (shared, events, spans) = fixture::traced();
        shared
            .set_config(Config::build(snapshot.clone()).expect("a config"))
            .expect("in force");
        let worker = Worker::new(shared.clone(), 1);
        spawn_local(worker.clone().tend(0));
        Self {
            worker,
            shared,
            events: events.into(),
            spans: spans.into(),
            application,
            snapshot,
        }
    }

    fn put(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.clone();
        change(&mut snapshot);
        self.shared
            .set_config(Config::build(snapshot).expect("a config"))
            .expect("in force");
    }

    /// A connection of orders.service to the VIP of nginx.
    async fn client(&self) -> TcpStream {
        self.client_of([240, 240, 0, 12]).await
    }

    /// The same to any VIP.
    async fn client_of(&self, vip: [u8; 4]) -> TcpStream {
        let (client, server) = pair().await;
        let unit = self
            .shared
            .config()
            .expect("a config")
            .unit_by_number(2)
            .expect("orders")
            .clone();
        let called = SocketAddr::new(vip.into(), 80);
        spawn_local(outbound::serve(
            self.worker.clone(),
            unit,
            called,
            LOCALHOST,
            Stream::Tcp(server),
        ));
        client
    }

    /// A connection from elsewhere to nginx.service.
    async fn caller(&self, who: inbound::Who) -> TcpStream {
        self.caller_by(self.shared.config().expect("a config"), who).await
    }

    /// The same, accepted while this config was in force.
    async fn caller_by(&self, config: Arc<Config>, who: inbound::Who) -> TcpStream {
        let (client, server) = pair().await;
        let unit = config.unit_by_number(1).expect("nginx").clone();
        let peer = match &who {
            inbound::Who::Identity(id) => id.clone(),
            inbound::Who::Plaintext { .. } => "plaintext".into(),
        };
        let (service, port) = (unit.service.clone(), unit.ports[0].port);
        let about = About {
            unit,
            direction: "inbound",
            peer,
            service,
            port,
            protocol: "http",
            client: LOCALHOST,
            sni: None,
            route: None,
        };
        let (worker, stream) = (self.worker.clone(), Stream::Tcp(server));
        spawn_local(inbound::serve(worker, config, about, who, stream));
        client
    }

    /// Nginx speaks HTTP/2.
    fn speaks_http2(snapshot: &mut Snapshot) {
        snapshot.units[0].ports[0].protocol = "http2".into();
        let nginx = snapshot.services.iter_mut().find(|service| service.name == "nginx");
        nginx.expect("nginx").ports[0].protocol = "http2".into();
    }

    /// The requests of the application's next connection, which is of HTTP/2.
    async fn accept_http2(&self) -> UnboundedReceiver<(http::Request<RecvStream>, SendResponse<Bytes>)> {
        let mut serving = h2::server::handshake(self.accept().await.0).await.expect("HTTP/2");
        let (sender, requests) = unbounded_channel();
        spawn_local(async move {
            while let Some(request) = serving.accept().await {
                sender.send(request.expect("a request")).expect("the test goes on");
            }
        });
        requests
    }

    /// The application's next connection.
    async fn accept(&self) -> Peer {
        Peer(
            timeout(LIMIT, self.application.accept())
                .await
                .expect("in time")
                .expect("a connection")
                .0,
            Vec::new(),
        )
    }

    async fn event(&self) -> Event {
        let mut events = self.events.lock().await;
        timeout(LIMIT, events.journal.batch(1))
            .await
            .expect("an event")
            .remove(0)
    }

    /// The next event in the journal of this unit.
    async fn event_of(&self, unit: &str) -> Event {
        loop {
            let event = self.event().await;
            if event.unit == unit {
                return event;
            }
        }
    }

    /// The spans that have ended.
    async fn spans(&self) -> Vec<Finished> {
        self.spans.lock().await.take(usize::MAX)
    }

    fn stats(&self) -> Collected {
        self.shared.stats.collect()
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.expect("a client"), accepted.expect("a server").0);
    server.set_nodelay(true).expect("as all sockets of the relay");
    (client, server)
}

/// One side of a conversation.
struct Peer(TcpStream, Vec<u8>);

impl Peer {
    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("sent");
    }

    /// Reads until the bytes end with this.
    async fn until(&mut self, end: &str) -> String {
        let find = |bytes: &[u8]| bytes.windows(end.len()).position(|window| window == end.as_bytes());
        loop {
            if let Some(at) = find(&self.1) {
                let rest = self.1.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.1, rest)).expect("text");
            }
            let count = timeout(LIMIT, self.0.read_buf(&mut self.1))
                .await
                .expect("in time")
                .expect("bytes");
            assert!(count > 0, "ended after {:?}", String::from_utf8_lossy(&self.1));
        }
    }

    async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Everything to the end of the stream; an error where it was broken off.
    async fn rest(mut self) -> std::io::Result<String> {
        timeout(LIMIT, self.0.read_to_end(&mut self.1))
            .await
            .expect("in time")?;
        Ok(String::from_utf8(self.1).expect("text"))
    }
}

/// All of a body.
async fn data(body: &mut RecvStream) -> String {
    let mut data = Vec::new();
    while let Some(more) = body.data().await {
        let more = more.expect("data");
        body.flow_control().release_capacity(more.len()).expect("received");
        data.extend_from_slice(&more);
    }
    String::from_utf8(data).expect("text")
}

/// Answers without a body.
fn respond(to: &mut SendResponse<Bytes>, status: u16) {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    to.send_response(response, true).expect("sent");
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(LIMIT * 3, test).await.expect("the test ends")
    });
}

fn retries(on: &[&str], non_idempotent: bool, per_try_timeout_ms: u64) -> impl FnOnce(&mut Snapshot) {
    let on = on.iter().map(|word| (*word).to_owned()).collect();
    move |snapshot| {
        let service = snapshot
            .services
            .iter_mut()
            .find(|service| service.name == "nginx")
            .expect("nginx");
        service.traffic.retries = Some(Retries {
            attempts: 3,
            per_try_timeout_ms,
            on,
            budget: 0.2,
            non_idempotent,
            backoff_ms: 0,
            max_backoff_ms: 0,
        });
        service.traffic.timeout_ms = 5_000;
    }
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: nginx\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
