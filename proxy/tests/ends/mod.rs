//! Two hosts' workers in one thread, joined by real TLS over loopback; h1 calls, h2 serves.
//!
//! Deliveries carry a mark, so this needs CAP_NET_RAW, as the proxy does.

pub mod gate;
pub mod http2;
pub mod twins;
pub mod web;

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use h2::client::SendRequest;
use hostmesh_proxy::events::{self, Event, EventSource};
use hostmesh_proxy::shared::{Shared, Svid, Svids};
use hostmesh_proxy::stats::Stats;
use hostmesh_proxy::tls::{Expected, Trust, client_config};
use hostmesh_proxy::traces;
use hostmesh_proxy::wire::server;
use hostmesh_proxy::worker::Worker;
use hostmesh_proxy_core::config::{Config, Endpoint};
use hostmesh_proxy_core::snapshot::Snapshot;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const ORDERS: &str = "spiffe://mesh.example/unit/orders";
pub const WEB: &str = "spiffe://mesh.example/unit/web";
pub const WEB_SNI: &str = "web.unit.mesh.example";
pub const WEB_UNIT: &str = "web.service";

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub der: CertificateDer<'static>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().expect("a key"));
        let certificate = params.self_signed(&key).expect("a root");
        Self {
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// An SVID; `sni` is where the tests put it, not part of it.
    pub fn svid(&self, unit: &str, sni: &str, spiffe_id: &str, host: &str) -> Arc<Svid> {
        self.with_ids(unit, sni, &[spiffe_id], host)
    }

    /// The same with any number of identities.
    pub fn with_ids(&self, unit: &str, sni: &str, ids: &[&str], host: &str) -> Arc<Svid> {
        self.shaped(unit, sni, ids, host, |_| {})
    }

    /// The same, changed before it is signed.
    pub fn shaped(
        &self,
        unit: &str,
        sni: &str,
        ids: &[&str],
        host: &str,
        shape: impl FnOnce(&mut CertificateParams),
    ) -> Arc<Svid> {
        let key = KeyPair::generate().expect("a key");
        let certificate = self.leaf(ids, host, &key, shape);
        with_chain(unit, sni, ids.first().unwrap_or(&""), &key, vec![certificate])
    }

    /// A leaf for somebody's key.
    pub fn leaf(
        &self,
        ids: &[&str],
        host: &str,
        key: &impl PublicKeyData,
        shape: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(host.try_into().expect("ascii"))];
        params
            .subject_alt_names
            .extend(ids.iter().map(|id| SanType::URI((*id).try_into().expect("ascii"))));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        shape(&mut params);
        let leaf = params.signed_by(key, &self.issuer).expect("a leaf");
        leaf.der().clone()
    }

    /// An authority that this one vouches for.
    pub fn below(&self, name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().expect("a key"));
        let certificate = params.signed_by(&key, &self.issuer).expect("an intermediate");
        Self {
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn web(&self) -> Arc<Svid> {
        self.svid(WEB_UNIT, WEB_SNI, WEB, "h2")
    }

    pub fn orders(&self) -> Arc<Svid> {
        self.svid("orders.service", "orders.unit.mesh.example", ORDERS, "h1")
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// What a unit holds, whether it fits together or not; times are far off, so that nothing here renews or ends by itself.
pub fn with_chain(
    unit: &str,
    sni: &str,
    spiffe_id: &str,
    key: &KeyPair,
    chain: Vec<CertificateDer<'static>>,
) -> Arc<Svid> {
    let der = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    Arc::new(Svid {
        unit: unit.into(),
        spiffe_id: spiffe_id.into(),
        sni: sni.into(),
        serial: format!("{:?}", chain[0].as_ref()),
        not_before: 0,
        not_after: u64::MAX,
        key: Arc::new(CertifiedKey::new(chain, any_supported_type(&der).expect("a key"))),
    })
}

fn unit(name: &str, number: u32, spiffe_id: &str, ports: &[u16], allow: &serde_json::Value) -> serde_json::Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"port": port, "protocol": "tcp", "client_address": "auto"}))
        .collect();
    json!({
        "unit": format!("{name}.service"), "number": number, "spiffe_id": spiffe_id, "service": name,
        "sni": format!("{name}.unit.mesh.example"), "ports": ports, "deliver": ["127.0.0.1"], "mode": "enforce",
        "allow": allow, "deny": [], "plaintext": [], "rule_default": format!("{name}.service.toml:no-allow"),
        "outbound": null, "rule_outbound_default": format!("{name}.service.toml:no-outbound"),
        "access_log": "none", "trace": 0.0
    })
}

/// What one end knows: `web` on h2 with two ports, of which `orders` of h1 may call the first; `other` has port 1.
pub fn config(host: &str, bundle: &[&Authority], wire: u16, ports: [u16; 2]) -> Config {
    config_with(host, bundle, wire, ports, &json!([]))
}

/// The same, with entries of what is revoked.
pub fn config_with(
    host: &str,
    bundle: &[&Authority],
    wire: u16,
    ports: [u16; 2],
    revoked: &serde_json::Value,
) -> Config {
    let snapshot = Snapshot {
        revoked: serde_json::from_value(revoked.clone()).expect("entries"),
        ..snapshot(host, bundle, wire, ports)
    };
    Config::build(snapshot).expect("a config")
}

/// What [`config`] is built of, as the agent would send it.
pub fn snapshot(host: &str, bundle: &[&Authority], wire: u16, ports: [u16; 2]) -> Snapshot {
    let bundle: Vec<_> = bundle
        .iter()
        .map(|ca| base64::engine::general_purpose::STANDARD.encode(&ca.der))
        .collect();
    let allow = json!([{"rule": "web.service.toml:3", "callers": [ORDERS], "ports": [ports[0]]}]);
    let units = match host {
        "h1" => vec![unit("orders", 7, ORDERS, &[], &json!([]))],
        _ => vec![
            unit("web", 8, WEB, &ports, &allow),
            unit("other", 9, "spiffe://mesh.example/unit/other", &[1], &json!([])),
        ],
    };
    let snapshot = json!({
        "version": 1, "revision": "1", "trust_domain": "mesh.example", "host": host, "addresses": ["198.18.0.9"],
        "marks": {"unit": 0xfff, "outbound": 0x0100_0000, "proxy": 0x0200_0000, "inbound": 0x0400_0000},
        "listeners": {"outbound": 15001, "plaintext": 15006, "wire": 15008, "dns": 15053},
        "trust_bundle": bundle, "units": units,
        "services": [{
            "name": "web", "vips": ["240.240.0.2"],
            "ports": [{"port": 80, "target": ports[0], "protocol": "tcp"}, {"port": 81, "target": ports[1], "protocol": "tcp"}],
            "traffic": {"timeout_ms": 0, "retries": null, "balance": "least-request", "rule": ""},
            "endpoints": [{"unit": WEB_UNIT, "host": "h2", "spiffe_id": WEB, "sni": WEB_SNI,
                           "addresses": ["127.0.0.1"], "wire_port": wire}]
        }]
    });
    serde_json::from_value(snapshot).expect("a snapshot")
}

/// One host's worker.
pub struct End {
    pub worker: Rc<Worker>,
    pub events: EventSource,
}

impl End {
    pub fn new(config: Config, svids: impl IntoIterator<Item = Arc<Svid>>) -> Self {
        let (sink, events) = events::queue();
        let shared = Arc::new(Shared::new(sink, traces::queue().0, Stats::new(), 1));
        shared.set_config(config).expect("in force");
        shared.set_svids(Svids::new(svids));
        let worker = Worker::new(shared, 1);
        tokio::task::spawn_local(worker.clone().tend(0));
        Self { worker, events }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.worker.shared
    }

    /// A number that the counters hold.
    pub fn gauge(&self, name: &str) -> i64 {
        self.shared().stats.collect().gauges[name]
    }

    /// Wire connections of this side (client | server) that came to nothing or were ended for this reason.
    pub fn tls_failures(&self, side: &str, reason: &str) -> u64 {
        let all = self.shared().stats.collect().tls_failures;
        all.get(side)
            .and_then(|reasons| reasons.get(reason))
            .copied()
            .unwrap_or(0)
    }

    /// The next event; there must be one soon.
    pub async fn event(&mut self) -> Event {
        soon(self.events.journal.batch(1)).await.remove(0)
    }
}

/// Both ends and the application between whose ports the policy tells.
pub struct Mesh {
    pub ca: Authority,
    pub h1: End,
    pub h2: End,
    /// Where h2's proxy listens.
    pub wire: SocketAddr,
    /// Accepts on the port that `orders` may call.
    pub application: TcpListener,
    pub ports: [u16; 2],
    /// TCP connections that h2's proxy has accepted.
    pub accepted: Rc<Cell<usize>>,
}

impl Mesh {
    pub async fn new() -> Self {
        let ca = Authority::new("mesh");
        let (web, orders) = (ca.web(), ca.orders());
        Self::with(ca, orders, web).await
    }

    /// With SVIDs of the test's choice, in a mesh that trusts `ca`.
    pub async fn with(ca: Authority, orders: Arc<Svid>, web: Arc<Svid>) -> Self {
        let application = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let ports = [port(&application), port(&closed)];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wire = listener.local_addr().expect("an address");
        let h1 = End::new(config("h1", &[&ca], wire.port(), ports), [orders]);
        let h2 = End::new(config("h2", &[&ca], wire.port(), ports), [web]);
        let accepted = Rc::new(Cell::new(0));
        let (worker, count) = (h2.worker.clone(), accepted.clone());
        tokio::task::spawn_local(async move {
            while let Ok((tcp, client)) = listener.accept().await {
                count.set(count.get() + 1);
                tokio::task::spawn_local(server::serve(worker.clone(), tcp, client));
            }
        });
        Self {
            ca,
            h1,
            h2,
            wire,
            application,
            ports,
            accepted,
        }
    }

    /// The service's only endpoint, as h1 knows it.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        self.h1.shared().config().expect("a config").services[0].endpoints[0].clone()
    }

    /// The application's next connection.
    pub async fn arrives(&self) -> TcpStream {
        soon(self.application.accept()).await.expect("a connection").0
    }
}

/// A client of the wire that is no proxy of ours.
pub async fn tls(mesh: &Mesh, config: ClientConfig, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(mesh.wire).await.expect("connected");
    tls_on(tcp, config, sni).await
}

/// The same on a connection that is there.
pub async fn tls_on(tcp: TcpStream, config: ClientConfig, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(sni.to_owned()).expect("a name");
    soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
}

/// What it needs to be let in with this certificate.
pub fn ours(mesh: &Mesh, svid: &Svid) -> ClientConfig {
    let trust = Trust::new("mesh.example", &[mesh.ca.der.to_vec()], Arc::default()).expect("a bundle");
    let expected = Expected {
        spiffe_id: WEB.into(),
        host: "h2".into(),
    };
    client_config(Arc::new(trust), svid, expected).expect("a config")
}

/// An HTTP/2 client with `orders`' certificate.
pub async fn client(mesh: &Mesh) -> SendRequest<Bytes> {
    let stream = tls(mesh, ours(mesh, &mesh.ca.orders()), WEB_SNI).await.expect("TLS");
    let (requests, connection) = soon(h2::client::handshake(stream)).await.expect("h2");
    tokio::task::spawn_local(connection);
    requests
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("an address").port()
}

/// Runs a test on a thread of its own kind: a worker's.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), test)
            .await
            .expect("in time")
    });
}

/// What must happen within five seconds.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), what).await.expect("soon")
}

/// Waits until it is so, five seconds at most.
pub async fn until(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
