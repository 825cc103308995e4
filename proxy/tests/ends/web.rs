//! A service on h2 that `orders` of h1 may call, in any protocol that is read, and a connection of orders to it.

use std::net::SocketAddr;

use hostmesh_proxy::http::outbound;
use hostmesh_proxy::stream::Stream;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::{Breaker, Snapshot};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::{Mesh, ORDERS, WEB, WEB_SNI, WEB_UNIT};

/// `web` on h2 with one port of this protocol that `orders` of h1 may call, but for /secret; three tries.
fn snapshot(mesh: &Mesh, host: &str, protocol: &str) -> Snapshot {
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&mesh.ca.der);
    let unit = |name: &str, number: u32, id: &str, ports: serde_json::Value| {
        json!({
            "unit": format!("{name}.service"), "number": number, "spiffe_id": id, "service": name,
            "sni": format!("{name}.unit.mesh.example"), "ports": ports, "deliver": ["127.0.0.1"], "mode": "enforce",
            "allow": [{"rule": "web.service.toml:3", "callers": [ORDERS]}],
            "deny": [{"rule": "web.service.toml:7", "callers": ["*"], "paths": ["/secret"]}],
            "plaintext": [], "rule_default": format!("{name}.service.toml:no-allow"), "outbound": null,
            "rule_outbound_default": format!("{name}.service.toml:no-outbound"), "access_log": "all", "trace": 0.0
        })
    };
    let port = mesh.ports[0];
    let units = match host {
        "h1" => vec![unit("orders", 7, ORDERS, json!([]))],
        _ => vec![unit(
            "web",
            8,
            WEB,
            json!([{"port": port, "protocol": protocol, "client_address": "local"}]),
        )],
    };
    let retries = json!({"attempts": 3, "per_try_timeout_ms": 0, "on": ["connect-failure"], "budget": 0.2, "non_idempotent": false});
    let snapshot = json!({
        "version": 1, "revision": "2", "trust_domain": "mesh.example", "host": host, "addresses": ["198.18.0.9"],
        "marks": {"unit": 0xfff, "outbound": 0x0100_0000, "proxy": 0x0200_0000, "inbound": 0x0400_0000},
        "listeners": {"outbound": 15001, "plaintext": 15006, "wire": 15008, "dns": 15053},
        "trust_bundle": [bundle], "units": units,
        "services": [{
            "name": "web", "vips": ["240.240.0.2"], "ports": [{"port": 80, "target": port, "protocol": protocol}],
            "traffic": {"timeout_ms": 5000, "retries": retries, "balance": "least-request", "rule": ""},
            "endpoints": [{"unit": WEB_UNIT, "host": "h2", "spiffe_id": WEB, "sni": WEB_SNI,
                           "addresses": ["127.0.0.1"], "wire_port": mesh.wire.port()}]
        }]
    });
    serde_json::from_value(snapshot).expect("a snapshot")
}

/// Puts it in force on one of the hosts.
pub fn put(mesh: &Mesh, host: &str, protocol: &str, change: impl FnOnce(&mut Snapshot)) {
    let mut snapshot = snapshot(mesh, host, protocol);
    change(&mut snapshot);
    let end = if host == "h1" { &mesh.h1 } else { &mesh.h2 };
    let config = Config::build(snapshot).expect("a config");
    end.shared().set_config(config).expect("in force");
}

/// Both hosts with it.
pub async fn mesh(protocol: &str) -> Mesh {
    let mesh = Mesh::new().await;
    put(&mesh, "h1", protocol, |_| {});
    put(&mesh, "h2", protocol, |_| {});
    mesh
}

/// A connection of orders that believes to lead to the service.
pub async fn connect(mesh: &Mesh) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (theirs, from) = theirs.expect("a connection");
    let worker = mesh.h1.worker.clone();
    let unit = worker
        .shared
        .config()
        .expect("a config")
        .unit_by_number(7)
        .expect("orders")
        .clone();
    let called = SocketAddr::new([240, 240, 0, 2].into(), 80);
    spawn_local(outbound::serve(worker, unit, called, from.ip(), Stream::Tcp(theirs)));
    ours.expect("connected")
}

/// A breaker without limits that ejects an endpoint for so long after so many errors, be it the last one.
pub fn ejecting_after(consecutive_errors: u32, eject_ms: u64) -> Breaker {
    Breaker {
        max_connections: 0,
        max_pending: 0,
        max_requests: 0,
        max_retries: 0,
        consecutive_errors,
        eject_ms,
        max_ejected: 1.0,
        rule: "web.service.toml:9".into(),
    }
}
