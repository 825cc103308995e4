//! A gatekeeper of h1, called `gate`: what it says to each question the test says.

use std::future::poll_fn;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, server};
use hostmesh_proxy_core::snapshot::{Authorize, Snapshot};
use http::{HeaderMap, HeaderValue, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::{WEB, WEB_UNIT, soon};

const GATE: &str = "spiffe://mesh.example/unit/gate";
const SNI: &str = "gate.unit.mesh.example";
/// An empty `CheckResponse`, framed as gRPC does: it goes on.
const YES: &[u8] = &[0; 5];
/// One whose status is PERMISSION_DENIED.
const NO: &[u8] = &[0, 0, 0, 0, 4, 0x0a, 2, 0x08, 7];

pub struct Gate {
    /// On which it listens.
    target: u16,
    questions: mpsc::UnboundedReceiver<Question>,
}

/// One that waits for an answer.
pub struct Question(SendResponse<Bytes>);

impl Gate {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.3:0").await.expect("a port");
        let target = listener.local_addr().expect("an address").port();
        let (tell, questions) = mpsc::unbounded_channel();
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                spawn_local(listen(stream, tell.clone()));
            }
        });
        Self { target, questions }
    }

    /// It is `web`'s, and called by this port; both are on h1. It has a minute to answer.
    pub fn guards(&self, snapshot: &mut Snapshot, port: u16) {
        let mut unit = snapshot.units[0].clone();
        (unit.unit, unit.number, unit.service) = ("gate.service".into(), 9, "gate".into());
        (unit.spiffe_id, unit.sni, unit.deliver) = (GATE.into(), SNI.into(), vec!["127.0.0.3".into()]);
        unit.allow[0].callers = vec![WEB.into()];
        let ports = serde_json::json!([{"port": self.target, "protocol": "grpc", "client_address": "local"}]);
        unit.ports = serde_json::from_value(ports).expect("a port");
        snapshot.units.push(unit);
        let mut gate = snapshot.services[0].clone();
        (gate.name, gate.vips) = ("gate".into(), vec!["240.240.0.3".into()]);
        (gate.ports[0].port, gate.ports[0].protocol) = (port, "grpc".into());
        gate.ports[0].target = self.target;
        (gate.traffic.hedge, gate.traffic.timeout_ms) = (None, 0);
        gate.endpoints.truncate(1);
        let endpoint = &mut gate.endpoints[0];
        (endpoint.unit, endpoint.host) = ("gate.service".into(), "h1".into());
        (endpoint.spiffe_id, endpoint.sni) = (GATE.into(), SNI.into());
        snapshot.services.push(gate);
        let web = snapshot.units.iter_mut().find(|unit| unit.unit == WEB_UNIT);
        web.expect("web").authorize = Some(Authorize {
            service: "gate".into(),
            timeout_ms: 60_000,
            on_error: "deny".into(),
            rule: "web.service.toml:9".into(),
        });
    }

    /// The next question; there must be one soon.
    pub async fn asked(&mut self) -> Question {
        soon(self.questions.recv()).await.expect("a question")
    }
}

impl Question {
    pub fn yes(self) {
        self.answer(YES);
    }

    pub fn no(self) {
        self.answer(NO);
    }

    fn answer(mut self, message: &'static [u8]) {
        let mut body = self.0.send_response(Response::new(()), false).expect("sent");
        body.send_data(Bytes::from_static(message), false).expect("sent");
        let status = ("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"));
        body.send_trailers(HeaderMap::from_iter([status])).expect("sent");
    }

    /// Soon nobody waits for an answer any more.
    pub async fn withdrawn(mut self) {
        let reason = soon(poll_fn(|cx| self.0.poll_reset(cx))).await;
        assert_eq!(reason.expect("a reset"), Reason::CANCEL);
    }
}

async fn listen(stream: TcpStream, tell: mpsc::UnboundedSender<Question>) {
    let mut connection = server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((_, respond))) = connection.accept().await {
        if tell.send(Question(respond)).is_err() {
            return; // the test is over
        }
    }
}
