//! What is revoked is refused at every handshake and cut off where it is open, on both sides; the rest goes on.

#[allow(dead_code)] // each test file uses a part
mod ends;

use std::time::{Duration, Instant};

use ends::{End, Mesh, ORDERS, WEB, config_with, run, soon, until};
use hostmesh_proxy::shared::Svids;
use hostmesh_proxy::stream::{Stream, WireStream};
use hostmesh_proxy::traces::connection::Opening;
use hostmesh_proxy::wire::client::OpenError;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// From the config that says so to the end of an open connection.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn open(mesh: &Mesh) -> Result<WireStream, OpenError> {
    let pool = &mesh.h1.worker.pool;
    soon(pool.open(
        &"orders.service".into(),
        &mesh.endpoint(),
        mesh.ports[0],
        &Opening::default(),
    ))
    .await
}

async fn carried(mesh: &Mesh) -> (Stream, TcpStream) {
    let (stream, mut application) = tokio::join!(open(mesh), mesh.arrives());
    let mut stream = Stream::Wire(Box::new(stream.expect("a stream")));
    stream.write_all(b"x").await.expect("sent");
    soon(application.read_exact(&mut [0; 1])).await.expect("received");
    (stream, application)
}

fn revoke(mesh: &Mesh, end: &End, host: &str, entries: &Value) {
    let config = config_with(host, &[&mesh.ca], mesh.wire.port(), mesh.ports, entries);
    end.shared().set_config(config).expect("in force");
}

fn entry(kind: &str, name: &str) -> Value {
    json!([{"kind": kind, "name": name, "begun_by": 0, "reason": "stolen"}])
}

#[test]
fn a_client_that_is_revoked_is_cut_off_and_not_let_in_again() {
    for (kind, name) in [("unit", ORDERS), ("host", "h1")] {
        run(async move {
            let mut mesh = Mesh::new().await;
            let (mut stream, _application) = carried(&mesh).await;
            let began = Instant::now();
            revoke(&mesh, &mesh.h2, "h2", &entry(kind, name));
            soon(stream.read(&mut [0; 1])).await.expect_err("cut off");
            assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
            let event = mesh.h2.event().await;
            assert_eq!(
                (event.kind, &*event.rule, &*event.peer),
                ("wire", "builtin:revoked", ORDERS)
            );
            assert!(
                event.message.contains(&format!("revoked, {kind} {name}")),
                "{}",
                event.message
            );
            let error = open(&mesh).await.err().expect("refused").to_string();
            assert!(error.contains("CertificateRevoked"), "{error}");
            let event = mesh.h2.event().await;
            assert_eq!(
                (event.kind, &*event.rule, &*event.peer),
                ("wire", "builtin:revoked", ORDERS)
            );
            assert_eq!(mesh.h2.tls_failures("server", "revoked"), 2);
            revoke(&mesh, &mesh.h2, "h2", &json!([]));
            open(&mesh).await.expect("let in again");
        });
    }
}

#[test]
fn a_server_that_is_revoked_is_called_no_more() {
    for (kind, name) in [("unit", WEB), ("host", "h2")] {
        run(async move {
            let mut mesh = Mesh::new().await;
            let (mut stream, _application) = carried(&mesh).await;
            let began = Instant::now();
            revoke(&mesh, &mesh.h1, "h1", &entry(kind, name));
            soon(stream.read(&mut [0; 1])).await.expect_err("cut off");
            assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
            let event = mesh.h1.event().await;
            assert_eq!(
                (event.kind, &*event.rule, &*event.peer),
                ("wire", "builtin:revoked", WEB)
            );
            assert!(
                event.message.contains(&format!("revoked, {kind} {name}")),
                "{}",
                event.message
            );
            let error = open(&mesh).await.err().expect("refused").to_string();
            assert!(error.contains("Revoked"), "{error}");
            assert_eq!(mesh.h1.tls_failures("client", "revoked"), 2);
        });
    }
}

#[test]
fn a_connection_that_was_replaced_by_a_renewal_is_cut_off_as_well() {
    run(async {
        let mesh = Mesh::new().await;
        let (mut old, _application) = carried(&mesh).await;
        mesh.h1.shared().set_svids(Svids::new([mesh.ca.orders()]));
        until(|| mesh.h1.gauge("pooled") == 0).await;
        revoke(&mesh, &mesh.h1, "h1", &entry("unit", WEB));
        soon(old.read(&mut [0; 1])).await.expect_err("cut off");
        assert_eq!(mesh.h1.tls_failures("client", "revoked"), 1);
    });
}

#[test]
fn others_feel_nothing() {
    run(async {
        let mesh = Mesh::new().await;
        let (mut stream, mut application) = carried(&mesh).await;
        for (end, host) in [(&mesh.h1, "h1"), (&mesh.h2, "h2")] {
            revoke(&mesh, end, host, &entry("unit", "spiffe://mesh.example/unit/third"));
        }
        open(&mesh).await.expect("a new stream");
        application.write_all(b"x").await.expect("sent");
        soon(stream.read_exact(&mut [0; 1])).await.expect("the old one lives");
        assert_eq!(mesh.accepted.get(), 1, "over the same connection");
    });
}
