//! Turns the shared vectors into a snapshot that a test can put in force, with an authority of the test's own.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};

use crate::events::{EventSource, queue};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::traces::{self, SpanSource};

/// A root that signs requests.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Which fields of a request the authority gets wrong.
#[derive(Default)]
pub struct Wrong {
    /// Another SPIFFE ID.
    pub spiffe_id: Option<&'static str>,
    /// Another host.
    pub host: Option<&'static str>,
    /// Over for years.
    pub expired: bool,
    /// This serial number, big-endian, in place of one by chance.
    pub serial: Option<&'static [u8]>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("root"))
    }

    pub fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// Signs a request as it is, but for what is to be wrong.
    pub fn sign(&self, csr: &[u8], wrong: &Wrong) -> Vec<u8> {
        let mut request = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).expect("a request");
        let params = &mut request.params;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = wrong.serial.map(SerialNumber::from_slice);
        if wrong.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        }
        for name in &mut params.subject_alt_names {
            match (&mut *name, wrong.spiffe_id, wrong.host) {
                (SanType::URI(uri), Some(other), _) => *uri = other.try_into().expect("uri"),
                (SanType::DnsName(host), _, Some(other)) => *host = other.try_into().expect("host"),
                _ => {}
            }
        }
        request.signed_by(&self.0).expect("signed").der().to_vec()
    }
}

/// The vector of host h1 with another root; its units are nginx (1) and orders (2).
pub fn snapshot(authority: &Authority) -> Snapshot {
    let mut snapshot: Snapshot =
        serde_json::from_str(include_str!("../../tests/vectors/snapshot/h1.json")).expect("the vector");
    snapshot.trust_bundle = vec![BASE64.encode(authority.der())];
    snapshot
}

/// Nothing in force, one worker.
pub fn shared() -> (Arc<Shared>, EventSource) {
    let (shared, events, _) = traced();
    (shared, events)
}

/// The same, with the spans.
pub fn traced() -> (Arc<Shared>, EventSource, SpanSource) {
    let ((sink, source), (spans, traced)) = (queue(), traces::queue());
    (Arc::new(Shared::new(sink, spans, Stats::new(), 1)), source, traced)
}

/// With this snapshot in force.
pub fn with(snapshot: Snapshot) -> Arc<Shared> {
    let (shared, _) = shared();
    shared
        .set_config(Config::build(snapshot).expect("a config"))
        .expect("in force");
    shared
}
