//! A unit's gatekeeper on its own host: how it is reached when it moves, and while the process drains.

#[allow(dead_code)] // other tests use the rest
mod ends;

use ends::web::{connect, put};
use ends::{Mesh, ORDERS, WEB, WEB_SNI, WEB_UNIT, run, soon};
use hostmesh_proxy_core::snapshot::{Authorize, Snapshot};
use http::{HeaderMap, HeaderValue, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

const GATE: &str = "spiffe://mesh.example/unit/gate";
const ASK: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy";

/// `web` of h1, whose gatekeeper is `gate` of h1; each question is told.
struct Guarded {
    mesh: Mesh,
    web: TcpListener,
    /// On which the gatekeeper listens.
    target: u16,
    asked: mpsc::UnboundedReceiver<()>,
}

impl Guarded {
    async fn new() -> Self {
        let mesh = Mesh::new().await;
        let web = TcpListener::bind(("127.0.0.2", mesh.ports[0])).await.expect("a port");
        let gate = TcpListener::bind("127.0.0.3:0").await.expect("a port");
        let target = gate.local_addr().expect("an address").port();
        let (tell, asked) = mpsc::unbounded_channel();
        spawn_local(async move {
            loop {
                let (stream, _) = gate.accept().await.expect("a connection");
                spawn_local(lets_in(stream, tell.clone()));
            }
        });
        let guarded = Self {
            mesh,
            web,
            target,
            asked,
        };
        guarded.put(81);
        guarded
    }

    /// The gatekeeper is called by this port.
    fn put(&self, port: u16) {
        let targets = [self.mesh.ports[0], self.target];
        put(&self.mesh, "h1", "http", |snapshot| guard(snapshot, targets, port));
    }

    /// The next request that reaches the application, answered so.
    async fn answer(&self, answer: &str) {
        let (mut stream, _) = soon(self.web.accept()).await.expect("a connection");
        until(&mut stream, "\r\n\r\n").await;
        stream.write_all(answer.as_bytes()).await.expect("sent");
    }
}

fn guard(snapshot: &mut Snapshot, targets: [u16; 2], port: u16) {
    let orders = snapshot.units[0].clone();
    let mut unit = |name: &str, number: u32, id: &str, sni: &str, address: &str, protocol: &str, caller: &str| {
        let mut unit = orders.clone();
        (unit.unit, unit.number, unit.service) = (format!("{name}.service"), number, name.into());
        (unit.spiffe_id, unit.sni, unit.deliver) = (id.into(), sni.into(), vec![address.into()]);
        unit.allow[0].callers = vec![caller.into()];
        let target = targets[usize::from(name == "gate")];
        let ports = serde_json::json!([{"port": target, "protocol": protocol, "client_address": "local"}]);
        unit.ports = serde_json::from_value(ports).expect("a port");
        unit.authorize = (name == "web").then(|| Authorize {
            service: "gate".into(),
            timeout_ms: 5000,
            on_error: "deny".into(),
            rule: "web.service.toml:9".into(),
        });
        snapshot.units.push(unit);
    };
    unit("web", 8, WEB, WEB_SNI, "127.0.0.2", "http", ORDERS);
    unit("gate", 9, GATE, "gate.unit.mesh.example", "127.0.0.3", "grpc", WEB);
    let web = &mut snapshot.services[0];
    web.endpoints[0].host = "h1".into();
    let retries = web.traffic.retries.as_mut().expect("retries");
    (retries.on, retries.budget) = (vec!["5xx".into()], 1.0);
    let mut gate = web.clone();
    (gate.name, gate.vips) = ("gate".into(), vec!["240.240.0.3".into()]);
    (gate.ports[0].port, gate.ports[0].protocol) = (port, "grpc".into());
    gate.ports[0].target = targets[1];
    let endpoint = &mut gate.endpoints[0];
    (endpoint.unit, endpoint.spiffe_id) = ("gate.service".into(), GATE.into());
    endpoint.sni = "gate.unit.mesh.example".into();
    assert_eq!(web.endpoints[0].unit, WEB_UNIT);
    snapshot.services.push(gate);
}

/// A gatekeeper that says yes.
async fn lets_in(stream: TcpStream, tell: mpsc::UnboundedSender<()>) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        tell.send(()).expect("the test waits");
        let mut body = respond.send_response(Response::new(()), false).expect("sent");
        body.send_data(bytes::Bytes::from_static(&[0; 5]), false).expect("sent");
        let status = ("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"));
        body.send_trailers(HeaderMap::from_iter([status])).expect("sent");
    }
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = soon(stream.read_u8())
            .await
            .unwrap_or_else(|_| panic!("no more after {text:?}"));
        text.push(char::from(byte));
    }
    text
}

#[test]
fn a_gatekeeper_that_moves_to_another_port_is_asked_there() {
    run(async {
        let mut guarded = Guarded::new().await;
        for port in [81, 82] {
            guarded.put(port);
            let mut client = connect(&guarded.mesh).await;
            client.write_all(ASK.as_bytes()).await.expect("sent");
            let (said, ()) = tokio::join!(until(&mut client, "\r\n\r\nok"), guarded.answer(OK));
            assert!(said.starts_with("HTTP/1.1 200"), "{port}: {said}");
            assert_eq!(guarded.asked.recv().await, Some(()));
        }
    });
}

#[test]
fn a_process_that_drains_asks_for_the_requests_that_it_has() {
    run(async {
        let mut guarded = Guarded::new().await;
        let mut client = connect(&guarded.mesh).await;
        client.write_all(ASK.as_bytes()).await.expect("sent");
        let answers = async {
            let (mut first, _) = soon(guarded.web.accept()).await.expect("a connection");
            until(&mut first, "\r\n\r\n").await;
            guarded.mesh.h1.shared().drain();
            // What is told to drain hears it before the next try.
            tokio::task::yield_now().await;
            first.write_all(BUSY.as_bytes()).await.expect("sent");
            guarded.answer(OK).await;
        };
        let (said, ()) = tokio::join!(until(&mut client, "\r\n\r\nok"), answers);
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        assert_eq!(guarded.asked.recv().await, Some(()));
        assert_eq!(guarded.asked.recv().await, Some(()));
    });
}
