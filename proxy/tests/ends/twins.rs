//! A service with one endpoint on the caller's own host and one on another; each application's every byte the test says.

use hostmesh_proxy::events::Event;
use hostmesh_proxy_core::snapshot::Snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::web::{connect, put};
use super::{Mesh, WEB, WEB_SNI, WEB_UNIT, soon};

pub const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")
}

/// `web` on both hosts.
pub struct Twins {
    pub mesh: Mesh,
    pub near: TcpListener,
}

impl Twins {
    /// One after the other in turn.
    pub async fn new(change: impl FnOnce(&mut Snapshot)) -> Self {
        let mesh = Mesh::new().await;
        let near = TcpListener::bind(("127.0.0.2", mesh.ports[0])).await.expect("a port");
        put(&mesh, "h2", "http", |_| {});
        put(&mesh, "h1", "http", |snapshot| {
            let orders = &snapshot.units[0];
            let mut web = orders.clone();
            (web.unit, web.number, web.service) = (WEB_UNIT.into(), 8, "web".into());
            (web.spiffe_id, web.sni) = (WEB.into(), WEB_SNI.into());
            web.rule_default = "web.service.toml:no-allow".into();
            web.deliver = vec!["127.0.0.2".into()];
            web.ports = serde_json::from_value(serde_json::json!([
                {"port": mesh.ports[0], "protocol": "http", "client_address": "local"}
            ]))
            .expect("a port");
            snapshot.units.push(web);
            let service = &mut snapshot.services[0];
            let mut endpoint = service.endpoints[0].clone();
            endpoint.host = "h1".into();
            service.endpoints.push(endpoint);
            service.traffic.balance = "round-robin".into();
            service.traffic.retries.as_mut().expect("retries").budget = 1.0;
            change(snapshot);
        });
        Self { mesh, near }
    }

    /// A client of `orders`.
    pub async fn client(&self) -> Peer {
        Peer(connect(&self.mesh).await, Vec::new())
    }

    /// Who is asked first, with its request read to `end`; and where the other is.
    pub async fn first(&self, end: &str) -> (Peer, &TcpListener) {
        let far = &self.mesh.application;
        let (mut peer, other) = tokio::select! {
            near = accepted(&self.near) => (near, far),
            far = accepted(far) => (far, &self.near),
        };
        peer.until(end).await;
        (peer, other)
    }

    /// One request by a client of its own, answered; was the near one asked?
    pub async fn asked(&self) -> bool {
        let mut client = self.client().await;
        client.send(&get("/")).await;
        let (mut peer, is_near) = tokio::select! {
            near = accepted(&self.near) => (near, true),
            far = accepted(&self.mesh.application) => (far, false),
        };
        peer.until("\r\n\r\n").await;
        peer.send(OK).await;
        assert!(client.until("ok").await.starts_with("HTTP/1.1 200 "));
        is_near
    }

    /// The next line of this unit on h1.
    pub async fn event_of(&mut self, unit: &str) -> Event {
        loop {
            let event = self.mesh.h1.event().await;
            if event.unit == unit {
                return event;
            }
        }
    }
}

/// One side of a conversation.
pub struct Peer(pub TcpStream, pub Vec<u8>);

impl Peer {
    /// All of it.
    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("sent");
    }

    /// Everything up to this, and this.
    pub async fn until(&mut self, end: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.1);
            if let Some((before, rest)) = text.split_once(end) {
                let (before, rest) = (before.to_owned(), rest.as_bytes().to_vec());
                self.1 = rest;
                return before + end;
            }
            let count = soon(self.0.read_buf(&mut self.1)).await.expect("bytes");
            assert!(count > 0, "ended after {:?}", String::from_utf8_lossy(&self.1));
        }
    }

    /// Its connection ends, well or by a reset.
    pub async fn ends(mut self) {
        while soon(self.0.read_buf(&mut self.1)).await.is_ok_and(|count| count > 0) {}
    }
}

/// The next connection.
pub async fn accepted(listener: &TcpListener) -> Peer {
    Peer(soon(listener.accept()).await.expect("a connection").0, Vec::new())
}
