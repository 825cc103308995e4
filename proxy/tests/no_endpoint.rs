//! A service that is declared and that nobody serves now: its VIP answers, and at once.

#[allow(dead_code)] // other tests use the rest
mod ends;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use ends::{End, ORDERS, run, soon};
use hostmesh_proxy::outbound;
use hostmesh_proxy_core::config::Config;
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Stands for a VIP: the address on which an intercepted connection arrives.
const VIP: Ipv4Addr = Ipv4Addr::new(127, 240, 0, 2);

/// `orders`, and `web` without endpoints, on this port.
fn config(port: u16, protocol: &str) -> Config {
    let orders = json!({
        "unit": "orders.service", "number": 7, "spiffe_id": ORDERS, "service": "orders",
        "sni": "orders.unit.mesh.example", "ports": [], "deliver": [], "mode": "enforce",
        "allow": [], "deny": [], "plaintext": [], "rule_default": "orders.service.toml:no-allow",
        "outbound": null, "rule_outbound_default": "orders.service.toml:no-outbound",
        "access_log": "errors", "trace": 0.0
    });
    let retries = json!({"attempts": 9, "per_try_timeout_ms": 0, "on": ["connect-failure", "5xx"], "budget": 1.0, "non_idempotent": true});
    let snapshot = json!({
        "version": 1, "revision": "1", "trust_domain": "mesh.example", "host": "h1", "addresses": ["198.18.0.9"],
        "marks": {"unit": 0xfff, "outbound": 0x0100_0000, "proxy": 0x0200_0000, "inbound": 0x0400_0000},
        "listeners": {"outbound": 15001, "plaintext": 15006, "wire": 15008, "dns": 15053},
        "trust_bundle": [], "units": [orders],
        "services": [{
            "name": "web", "vips": [VIP.to_string()], "ports": [{"port": port, "target": port, "protocol": protocol}],
            "traffic": {"timeout_ms": 0, "retries": retries, "balance": "least-request", "rule": ""}, "endpoints": []
        }]
    });
    Config::build(serde_json::from_value(snapshot).expect("a snapshot")).expect("a config")
}

/// A connection of `orders` to the VIP, as the kernel hands it to the proxy; and the proxy.
async fn call(protocol: &str) -> (TcpStream, End) {
    let listener = TcpListener::bind((VIP, 0)).await.expect("a port");
    let vip = listener.local_addr().expect("an address");
    let h1 = End::new(config(vip.port(), protocol), []);
    let (ours, theirs) = tokio::join!(TcpStream::connect(vip), listener.accept());
    let (theirs, from): (TcpStream, SocketAddr) = theirs.expect("a connection");
    SockRef::from(&theirs)
        .set_mark(0x0100_0007)
        .expect("root, or CAP_NET_RAW");
    tokio::task::spawn_local(outbound::serve(h1.worker.clone(), theirs, from));
    (ours.expect("connected"), h1)
}

#[test]
fn http_gets_a_503_at_once_whatever_may_be_retried() {
    run(async {
        let (mut client, mut h1) = call("http").await;
        for _ in 0..2 {
            let request = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
            client.write_all(request.as_bytes()).await.expect("sent");
            let mut reply = Vec::new();
            while !reply.ends_with(b"the service has no endpoint\n") {
                let read = soon(client.read_buf(&mut reply)).await.expect("an answer");
                assert_ne!(read, 0, "{}", String::from_utf8_lossy(&reply));
            }
            let reply = String::from_utf8(reply).expect("text").to_ascii_lowercase();
            assert!(reply.starts_with("http/1.1 503 "), "{reply}");
            assert!(reply.contains("\r\nx-hostmesh-error: no-endpoint\r\n"), "{reply}");
            let event = h1.event().await;
            assert_eq!(
                (event.kind, event.status, event.tries),
                ("error", 503, 0),
                "nothing was tried"
            );
        }
    });
}

#[test]
fn tcp_is_reset_at_once() {
    run(async {
        let (mut client, mut h1) = call("tcp").await;
        let error = soon(client.read(&mut [0; 1])).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let event = h1.event().await;
        assert_eq!((event.kind, &*event.unit), ("error", "orders.service"));
        assert!(
            event.message.contains("the service has no endpoint"),
            "{}",
            event.message
        );
    });
}
