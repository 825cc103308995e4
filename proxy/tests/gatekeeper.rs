//! A unit's gatekeeper on its own host: how it is reached when it moves, and while the process drains.

#[allow(dead_code)] // other tests use the rest
mod ends;

use ends::gate::Gate;
use ends::web::{connect, put};
use ends::{Mesh, WEB, WEB_SNI, WEB_UNIT, run, soon};
use hostmesh_proxy_core::snapshot::Snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ASK: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy";

/// `web` of h1, whose gatekeeper is `gate` of h1.
struct Guarded {
    mesh: Mesh,
    web: TcpListener,
    gate: Gate,
}

impl Guarded {
    async fn new() -> Self {
        let mesh = Mesh::new().await;
        let web = TcpListener::bind(("127.0.0.2", mesh.ports[0])).await.expect("a port");
        let gate = Gate::new().await;
        let guarded = Self { mesh, web, gate };
        guarded.put(81);
        guarded
    }

    /// The gatekeeper is called by this port.
    fn put(&self, port: u16) {
        let target = self.mesh.ports[0];
        put(&self.mesh, "h1", "http", |snapshot| {
            near(snapshot, target);
            self.gate.guards(snapshot, port);
        });
    }

    /// The next request that reaches the application, answered so.
    async fn answer(&self, answer: &str) {
        let (mut stream, _) = soon(self.web.accept()).await.expect("a connection");
        until(&mut stream, "\r\n\r\n").await;
        stream.write_all(answer.as_bytes()).await.expect("sent");
    }
}

/// `web` is on h1, and tried again when it fails.
fn near(snapshot: &mut Snapshot, target: u16) {
    let mut web = snapshot.units[0].clone();
    (web.unit, web.number, web.service) = (WEB_UNIT.into(), 8, "web".into());
    (web.spiffe_id, web.sni, web.deliver) = (WEB.into(), WEB_SNI.into(), vec!["127.0.0.2".into()]);
    let ports = serde_json::json!([{"port": target, "protocol": "http", "client_address": "local"}]);
    web.ports = serde_json::from_value(ports).expect("a port");
    snapshot.units.push(web);
    let service = &mut snapshot.services[0];
    service.endpoints[0].host = "h1".into();
    let retries = service.traffic.retries.as_mut().expect("retries");
    (retries.on, retries.budget) = (vec!["5xx".into()], 1.0);
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
            guarded.gate.asked().await.yes();
            let (said, ()) = tokio::join!(until(&mut client, "\r\n\r\nok"), guarded.answer(OK));
            assert!(said.starts_with("HTTP/1.1 200"), "{port}: {said}");
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
            guarded.gate.asked().await.yes();
            let (mut first, _) = soon(guarded.web.accept()).await.expect("a connection");
            until(&mut first, "\r\n\r\n").await;
            guarded.mesh.h1.shared().drain();
            // What is told to drain hears it before the next try.
            tokio::task::yield_now().await;
            first.write_all(BUSY.as_bytes()).await.expect("sent");
            guarded.gate.asked().await.yes();
            guarded.answer(OK).await;
        };
        let (said, ()) = tokio::join!(until(&mut client, "\r\n\r\nok"), answers);
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    });
}
