//! Clients of the wire that are no proxy of ours: what they may not do.

#[allow(dead_code)] // each test file uses a part
mod ends;

use std::sync::Arc;

use ends::{Mesh, ORDERS, WEB_SNI, client, ours, run, soon, tls, until};
use http::{Method, Request, StatusCode};
use rustls::crypto::aws_lc_rs;
use rustls::version::TLS12;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;

async fn ask(mesh: &Mesh, method: Method, uri: &str) -> StatusCode {
    let requests = client(mesh).await;
    let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
    let (response, _send) = requests
        .ready()
        .await
        .expect("ready")
        .send_request(request, false)
        .expect("sent");
    soon(response).await.expect("a response").status()
}

#[test]
fn only_the_units_own_ports_can_be_called() {
    run(async {
        let mut mesh = Mesh::new().await;
        let [allowed, denied] = mesh.ports;
        assert_eq!(
            ask(&mesh, Method::CONNECT, &format!("{WEB_SNI}:{allowed}")).await,
            StatusCode::OK
        );
        assert_eq!(
            ask(&mesh, Method::CONNECT, &format!("198.18.0.9:{allowed}")).await,
            StatusCode::OK
        );
        assert_eq!(
            ask(&mesh, Method::CONNECT, &format!("{WEB_SNI}:{denied}")).await,
            StatusCode::FORBIDDEN
        );
        let _denied = mesh.h2.event().await;
        for wrong in [
            format!("{WEB_SNI}:1"), // another unit's of the same host
            format!("{WEB_SNI}:22"),
            format!("198.18.0.10:{allowed}"), // another host's
            format!("other.unit.mesh.example:{allowed}"),
            format!("example.org:{allowed}"),
        ] {
            assert_eq!(
                ask(&mesh, Method::CONNECT, &wrong).await,
                StatusCode::NOT_FOUND,
                "{wrong}"
            );
            let event = mesh.h2.event().await;
            assert_eq!(
                (event.kind, &*event.rule, &*event.peer),
                ("denied", "web.service.toml:no-allow", ORDERS)
            );
            assert!(event.message.contains(&wrong), "{}", event.message);
        }
    });
}

#[test]
fn only_connect_is_spoken() {
    run(async {
        let mesh = Mesh::new().await;
        let uri = format!("https://{WEB_SNI}:{}/", mesh.ports[0]);
        assert_eq!(ask(&mesh, Method::GET, &uri).await, StatusCode::NOT_FOUND);
    });
}

#[test]
fn a_name_that_no_unit_has_gets_no_handshake() {
    run(async {
        let mesh = Mesh::new().await;
        let orders = mesh.ca.orders();
        assert!(
            tls(&mesh, ours(&mesh, &orders), "nobody.unit.mesh.example")
                .await
                .is_err()
        );
        assert!(
            tls(&mesh, ours(&mesh, &orders), "orders.unit.mesh.example")
                .await
                .is_err()
        );
        assert!(
            tls(&mesh, ours(&mesh, &orders), &WEB_SNI.to_uppercase()).await.is_ok(),
            "names know no case"
        );
    });
}

#[test]
fn tls_1_2_is_refused() {
    run(async {
        let mesh = Mesh::new().await;
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS12])
            .expect("a version")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let error = tls(&mesh, config, WEB_SNI).await.expect_err("refused").to_string();
        assert!(error.contains("ProtocolVersion"), "{error}");
    });
}

/// In TLS 1.3 a client is refused after its own handshake is done: the first read tells.
async fn refused(mesh: &Mesh, config: ClientConfig) -> String {
    match tls(mesh, config, WEB_SNI).await {
        Err(error) => error.to_string(),
        Ok(mut stream) => match soon(stream.read(&mut [0; 1])).await {
            Err(error) => error.to_string(),
            Ok(count) => panic!("{count} bytes instead of an alert"),
        },
    }
}

#[test]
fn without_a_certificate_nothing_is_served() {
    run(async {
        let mesh = Mesh::new().await;
        let mut config = ours(&mesh, &mesh.ca.orders());
        config.client_auth_cert_resolver = Arc::new(Nothing);
        let error = refused(&mesh, config).await;
        assert!(error.contains("CertificateRequired"), "{error}");
        until(|| mesh.h2.tls_failures("server", "no-certificate") == 1).await;
    });
}

#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn http_1_1_by_alpn_is_refused() {
    run(async {
        let mesh = Mesh::new().await;
        let mut config = ours(&mesh, &mesh.ca.orders());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let error = tls(&mesh, config, WEB_SNI).await.expect_err("refused").to_string();
        assert!(error.contains("NoApplicationProtocol"), "{error}");
        let mut config = ours(&mesh, &mesh.ca.orders());
        config.alpn_protocols = Vec::new();
        let mut stream = tls(&mesh, config, WEB_SNI).await.expect("TLS without a protocol");
        let end = soon(stream.read(&mut [0; 1])).await;
        assert!(!matches!(end, Ok(1..)), "said nothing, served nothing");
    });
}

#[test]
fn a_leaf_with_two_identities_is_nobody() {
    run(async {
        let mesh = Mesh::new().await;
        let two = mesh.ca.with_ids("orders.service", "orders", &[ORDERS, ends::WEB], "h1");
        let error = refused(&mesh, ours(&mesh, &two)).await;
        assert!(error.contains("CertificateUnknown"), "{error}");
        assert_eq!(mesh.h2.gauge("tls_handshakes"), 0);
    });
}
