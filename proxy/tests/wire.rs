//! Two ends of the wire over loopback: who may speak, what passes, what is pooled, how it ends.

#[allow(dead_code)] // each test file uses a part
mod ends;

use std::sync::Arc;

use ends::{Authority, End, Mesh, ORDERS, WEB, WEB_SNI, WEB_UNIT, config, ours, run, soon, tls_on, until};
use hostmesh_proxy::shared::{Shared, Svids};
use hostmesh_proxy::stream::{Stream, WireStream};
use hostmesh_proxy::traces::connection::Opening;
use hostmesh_proxy::wire::client::OpenError;
use hostmesh_proxy::wire::idle::Key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn open(mesh: &Mesh) -> Result<Stream, OpenError> {
    let opened = soon(mesh.h1.worker.pool.open(
        &"orders.service".into(),
        &mesh.endpoint(),
        mesh.ports[0],
        &Opening::default(),
    ))
    .await;
    opened.map(|stream| Stream::Wire(Box::new(stream)))
}

fn failure(result: Result<Stream, OpenError>) -> OpenError {
    result.err().expect("a failure")
}

#[test]
fn a_server_may_speak_first_and_ends_pass_one_by_one() {
    run(async {
        let mesh = Mesh::new().await;
        let (stream, mut application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut stream = stream.expect("a stream");
        application.write_all(b"220 ready").await.expect("sent");
        let mut greeting = [0; 9];
        soon(stream.read_exact(&mut greeting)).await.expect("a greeting");
        assert_eq!(&greeting, b"220 ready");
        stream.write_all(b"QUIT").await.expect("sent");
        stream.shutdown().await.expect("an end");
        let mut asked = Vec::new();
        soon(application.read_to_end(&mut asked)).await.expect("the end");
        assert_eq!(asked, b"QUIT");
        application.write_all(b"221 bye").await.expect("still open this way");
        drop(application);
        let mut last = Vec::new();
        soon(stream.read_to_end(&mut last)).await.expect("the other end");
        assert_eq!(last, b"221 bye");
    });
}

#[test]
fn a_reset_is_passed_on_as_one() {
    run(async {
        let mesh = Mesh::new().await;
        let (stream, application) = tokio::join!(open(&mesh), mesh.arrives());
        hostmesh_proxy::sockopt::abort(application);
        let error = soon(stream.expect("a stream").read(&mut [0; 1]))
            .await
            .expect_err("no orderly end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn megabytes_arrive_whole_though_the_reader_is_slow() {
    run(async {
        let mesh = Mesh::new().await;
        let (stream, mut application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut stream = stream.expect("a stream");
        let sent: Vec<u8> = (0..24 * 1024 * 1024u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let expected = sent.clone();
        let writer = tokio::task::spawn_local(async move {
            stream.write_all(&sent).await.expect("sent");
            stream.shutdown().await.expect("an end");
            stream
        });
        // More than all windows and socket buffers hold: the writer has to wait for the reader.
        until(|| mesh.h2.gauge("streams") == 1).await;
        assert!(!writer.is_finished());
        let mut received = Vec::new();
        tokio::time::timeout(
            std::time::Duration::from_secs(20),
            application.read_to_end(&mut received),
        )
        .await
        .expect("in time")
        .expect("all");
        assert!(received == expected, "{} bytes of {}", received.len(), expected.len());
    });
}

#[test]
fn streams_that_nobody_reads_do_not_stand_in_the_way() {
    run(async {
        let mesh = Mesh::new().await;
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let (stream, application) = tokio::join!(open(&mesh), mesh.arrives());
            let mut stream = stream.expect("a stream");
            let written = tokio::task::spawn_local(async move { stream.write_all(&vec![0; 16 * 1024 * 1024]).await });
            stalled.push((written, application));
        }
        let (stream, mut application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut stream = stream.expect("a stream");
        let megabyte = vec![7; 1024 * 1024];
        let mut seen = vec![0; megabyte.len()];
        let (sent, received) = tokio::join!(stream.write_all(&megabyte), soon(application.read_exact(&mut seen)));
        assert!(sent.is_ok() && received.is_ok() && seen == megabyte);
        assert!(
            stalled.iter().all(|(written, _)| !written.is_finished()),
            "they were to be full"
        );
        assert_eq!(mesh.accepted.get(), 1, "all of it on one connection");
    });
}

#[test]
fn one_tls_connection_carries_all_streams_of_a_pair() {
    run(async {
        let mesh = Mesh::new().await;
        let (one, two) = tokio::join!(open(&mesh), open(&mesh));
        let three = open(&mesh).await;
        assert!(one.is_ok() && two.is_ok() && three.is_ok());
        assert_eq!(
            (
                mesh.accepted.get(),
                mesh.h1.gauge("tls_handshakes"),
                mesh.h1.gauge("streams")
            ),
            (1, 1, 3)
        );
        drop((one, two, three));
        until(|| mesh.h1.gauge("streams") == 0 && mesh.h2.gauge("streams") == 0).await;
    });
}

#[test]
fn another_identity_at_the_address_is_refused() {
    run(async {
        let ca = Authority::new("mesh");
        let (orders, impostor) = (
            ca.orders(),
            ca.svid(WEB_UNIT, WEB_SNI, "spiffe://mesh.example/unit/web2", "h2"),
        );
        let mesh = Mesh::with(ca, orders, impostor).await;
        let error = failure(open(&mesh).await).to_string();
        assert!(
            error.contains("unit/web2 answered, not spiffe://mesh.example/unit/web"),
            "{error}"
        );
    });
}

#[test]
fn the_right_identity_on_another_host_is_refused() {
    run(async {
        let ca = Authority::new("mesh");
        let (orders, elsewhere) = (ca.orders(), ca.svid(WEB_UNIT, WEB_SNI, WEB, "h3"));
        let mesh = Mesh::with(ca, orders, elsewhere).await;
        let error = failure(open(&mesh).await).to_string();
        assert!(error.contains("answered from h3, not from h2"), "{error}");
    });
}

#[test]
fn a_server_of_another_authority_is_refused() {
    run(async {
        let ca = Authority::new("mesh");
        let (orders, foreign) = (ca.orders(), Authority::new("foreign").web());
        let mesh = Mesh::with(ca, orders, foreign).await;
        let error = failure(open(&mesh).await).to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");
    });
}

#[test]
fn a_client_of_another_authority_or_trust_domain_reaches_nothing() {
    run(async {
        let foreign = Authority::new("foreign").orders();
        let ca = Authority::new("mesh");
        let strange = ca.svid(
            "orders.service",
            "orders.unit.mesh.example",
            "spiffe://mesh.example.org/unit/orders",
            "h1",
        );
        let web = ca.web();
        let mesh = Mesh::with(ca, foreign, web).await;
        assert!(matches!(failure(open(&mesh).await), OpenError::Unreachable(_)));
        mesh.h1.shared().set_svids(Svids::new([strange]));
        assert!(matches!(failure(open(&mesh).await), OpenError::Unreachable(_)));
        assert_eq!(mesh.h2.gauge("tls_handshakes"), 0);
        for reason in ["unknown-issuer", "wrong-trust-domain"] {
            until(|| mesh.h2.tls_failures("server", reason) == 1).await;
        }
    });
}

#[test]
fn a_unit_without_a_certificate_calls_nobody() {
    run(async {
        let mesh = Mesh::new().await;
        mesh.h1.shared().set_svids(Svids::default());
        assert!(matches!(failure(open(&mesh).await), OpenError::NoIdentity));
        assert_eq!(mesh.accepted.get(), 0);
    });
}

#[test]
fn policy_refuses_by_rule_and_the_caller_learns_it_at_once() {
    run(async {
        let mut mesh = Mesh::new().await;
        let denied = mesh
            .h1
            .worker
            .pool
            .open(
                &"orders.service".into(),
                &mesh.endpoint(),
                mesh.ports[1],
                &Opening::default(),
            )
            .await;
        assert!(matches!(denied.err(), Some(OpenError::Denied)));
        let event = mesh.h2.event().await;
        assert_eq!(
            (event.kind, &*event.rule, &*event.peer),
            ("denied", "web.service.toml:no-allow", ORDERS)
        );
        assert_eq!(mesh.h2.shared().stats.collect().denied["web.service.toml:no-allow"], 1);
    });
}

#[test]
fn an_application_that_is_down_is_told_apart_from_a_refusal() {
    run(async {
        let mesh = Mesh::new().await;
        let (port, endpoint) = (mesh.ports[0], mesh.endpoint());
        let Mesh {
            application,
            h1,
            h2: _h2,
            ..
        } = mesh;
        drop(application);
        let down = h1_open(&h1.worker, &endpoint, port).await;
        assert!(matches!(down.err(), Some(OpenError::Application)));
    });
}

async fn h1_open(
    worker: &hostmesh_proxy::worker::Worker,
    endpoint: &hostmesh_proxy_core::config::Endpoint,
    port: u16,
) -> Result<WireStream, OpenError> {
    soon(
        worker
            .pool
            .open(&"orders.service".into(), endpoint, port, &Opening::default()),
    )
    .await
}

#[test]
fn a_renewed_certificate_is_used_for_new_streams_and_old_ones_live_on() {
    run(async {
        let mesh = Mesh::new().await;
        let (old, mut application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut old = old.expect("a stream");
        mesh.h1.shared().set_svids(Svids::new([mesh.ca.orders()]));
        until(|| mesh.h1.gauge("pooled") == 0).await;
        let _new = open(&mesh).await.expect("a stream");
        assert_eq!(mesh.accepted.get(), 2);
        old.write_all(b"still here").await.expect("sent");
        let mut seen = [0; 10];
        soon(application.read_exact(&mut seen)).await.expect("received");
        assert_eq!(&seen, b"still here");
    });
}

#[test]
fn goaway_moves_new_streams_and_lets_old_ones_end() {
    run(async {
        let mesh = Mesh::new().await;
        let (old, mut application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut old = old.expect("a stream");
        mesh.h2
            .worker
            .links
            .borrow()
            .iter()
            .filter_map(std::rc::Weak::upgrade)
            .for_each(|link| link.retire());
        let accepted = &mesh.accepted;
        soon(async {
            while accepted.get() < 2 {
                drop(open(&mesh).await.expect("a stream, on this connection or the next"));
            }
        })
        .await;
        old.write_all(b"bye").await.expect("sent");
        old.shutdown().await.expect("an end");
        let mut seen = Vec::new();
        soon(application.read_to_end(&mut seen)).await.expect("the end");
        assert_eq!(seen, b"bye");
    });
}

/// Makes a TLS connection of it that has no streams: GOAWAY ends it, and nothing else.
async fn ends_by_goaway(mesh: &Mesh, tcp: TcpStream) {
    let stream = tls_on(tcp, ours(mesh, &mesh.ca.orders()), WEB_SNI).await.expect("TLS");
    let (_requests, connection) = soon(h2::client::handshake(stream)).await.expect("h2");
    soon(connection).await.expect("an orderly end");
}

#[test]
fn a_connection_that_is_still_being_made_when_the_process_is_to_end_hears_it_too() {
    for is_to_end in [Shared::retire, Shared::drain] {
        run(async {
            let mesh = Mesh::new().await;
            let knock = || async { TcpStream::connect(mesh.wire).await.expect("connected") };
            let (made, late) = (knock().await, knock().await);
            let told = async {
                until(|| mesh.h2.gauge("tls_handshakes") == 1 && mesh.accepted.get() == 2).await;
                is_to_end(mesh.h2.shared());
            };
            tokio::join!(ends_by_goaway(&mesh, made), told);
            ends_by_goaway(&mesh, late).await;
        });
    }
}

#[test]
fn a_bundle_that_does_not_carry_the_peer_ends_its_connections() {
    run(async {
        let mesh = Mesh::new().await;
        let (stream, _application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut stream = stream.expect("a stream");
        let other = Authority::new("the next root");
        mesh.h2
            .shared()
            .set_config(config("h2", &[&other], mesh.wire.port(), mesh.ports))
            .expect("in force");
        soon(stream.read(&mut [0; 1])).await.expect_err("cut off");
    });
}

#[test]
fn a_bundle_with_one_more_root_ends_nothing() {
    run(async {
        let mesh = Mesh::new().await;
        let (stream, mut application) = tokio::join!(open(&mesh), mesh.arrives());
        let mut stream = stream.expect("a stream");
        let next = Authority::new("the next root");
        for (end, host) in [(&mesh.h1, "h1"), (&mesh.h2, "h2")] {
            end.shared()
                .set_config(config(host, &[&mesh.ca, &next], mesh.wire.port(), mesh.ports))
                .expect("in force");
        }
        let _new = open(&mesh).await.expect("a new stream");
        application.write_all(b"x").await.expect("sent");
        soon(stream.read_exact(&mut [0; 1])).await.expect("the old one lives");
    });
}

#[test]
fn an_idle_stream_serves_again_and_a_dead_one_does_not() {
    run(async {
        let mesh = Mesh::new().await;
        let (idle, endpoint) = (&mesh.h1.worker.idle, mesh.endpoint());
        let key = Key::new(&Arc::from("orders.service"), &endpoint, mesh.ports[0]);
        assert!(idle.take(&key).is_none());
        let (stream, mut application) =
            tokio::join!(h1_open(&mesh.h1.worker, &endpoint, mesh.ports[0]), mesh.arrives());
        idle.put(key.clone(), stream.expect("a stream"));
        let mut again = Stream::Wire(Box::new(idle.take(&key).expect("the same stream")));
        again.write_all(b"GET").await.expect("sent");
        soon(application.read_exact(&mut [0; 3]))
            .await
            .expect("over the same connection");
        let Stream::Wire(again) = again else {
            unreachable!("it was one")
        };
        idle.put(key.clone(), *again);
        assert_eq!(idle.len(), 1);
        drop(application);
        until(|| idle.take(&key).map(|alive| idle.put(key.clone(), alive)).is_none()).await;
        assert_eq!(mesh.h1.gauge("tls_handshakes"), 1);
    });
}

#[test]
fn a_silent_unit_pair_keeps_its_own_connection() {
    run(async {
        let mesh = Mesh::new().await;
        let other = End::new(
            config("h1", &[&mesh.ca], mesh.wire.port(), mesh.ports),
            [mesh.ca.orders()],
        );
        let endpoint = mesh.endpoint();
        let one = h1_open(&mesh.h1.worker, &endpoint, mesh.ports[0]).await;
        let two = h1_open(&other.worker, &endpoint, mesh.ports[0]).await;
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(mesh.accepted.get(), 2, "workers share nothing");
    });
}
