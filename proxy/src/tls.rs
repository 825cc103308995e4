//! Turns SVIDs and the trust bundle into TLS 1.3 sessions whose peers are who they must be.
//!
//! Law: a peer is known by the one URI SAN of a leaf that chains to the bundle in force (X.509-SVID, sections 2, 4 and
//! 5); names in the session are never believed. No session is resumed: each is judged by the bundle of its time.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::shared::{Shared, Svid};

/// The wire's only application protocol (RFC 7301).
pub const ALPN: &[u8] = b"h2";

/// A certificate of the trust bundle that cannot be a trust anchor.
#[derive(Debug)]
pub struct BadBundle(String);

impl fmt::Display for BadBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trust_bundle: {}", self.0)
    }
}

impl std::error::Error for BadBundle {}

/// A peer that is not whom it must be.
#[derive(Debug)]
pub struct WrongPeer(String);

impl fmt::Display for WrongPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongPeer {}

/// What a leaf says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The one URI SAN.
    pub spiffe_id: Arc<str>,
    /// The DNS SANs: the host.
    pub hosts: Vec<String>,
}

/// A trust bundle, ready to judge chains.
pub struct Trust {
    domain: String,
    bundle: Vec<Vec<u8>>,
    roots: Arc<RootCertStore>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

impl Trust {
    /// Trusts no one.
    pub fn nobody() -> Self {
        Self {
            domain: String::new(),
            bundle: Vec::new(),
            roots: Arc::new(RootCertStore::empty()),
            clients: None,
        }
    }

    /// Trusts the chains that end in a certificate (DER) of the bundle, for identities of one trust domain.
    pub fn new(domain: &str, bundle: &[Vec<u8>]) -> Result<Self, BadBundle> {
        let mut roots = RootCertStore::empty();
        for der in bundle {
            roots
                .add(CertificateDer::from_slice(der))
                .map_err(|error| BadBundle(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let clients = if bundle.is_empty() {
            None
        } else {
            let built = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
            Some(built.map_err(|error| BadBundle(error.to_string()))?)
        };
        Ok(Self {
            domain: domain.to_owned(),
            bundle: bundle.to_vec(),
            roots,
            clients,
        })
    }

    /// Is this the trust that these would make?
    pub fn is_of(&self, domain: &str, bundle: &[Vec<u8>]) -> bool {
        self.domain == domain && self.bundle == bundle
    }

    /// Judges the chain of a server; its identity is then for the caller to compare.
    pub fn server(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, algorithms().all)?;
        self.identity(leaf)
    }

    /// Judges the chain of a client.
    pub fn client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let clients = self.clients.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        clients.verify_client_cert(leaf, rest, now)?;
        self.identity(leaf)
    }

    fn identity(&self, leaf: &CertificateDer<'_>) -> Result<Peer, Error> {
        let peer = read_leaf(leaf).map_err(wrong)?;
        let path = peer
            .spiffe_id
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(&*self.domain));
        match path {
            Some(path) if path.starts_with('/') => Ok(peer),
            _ => Err(wrong(WrongPeer(format!(
                "{} is not of trust domain {}",
                peer.spiffe_id, self.domain
            )))),
        }
    }
}

/// Reads identity and host of a leaf: exactly one URI SAN, a SPIFFE ID (X.509-SVID, section 2).
pub fn read_leaf(der: &[u8]) -> Result<Peer, WrongPeer> {
    let bad = |why: &str| WrongPeer(format!("peer's certificate: {why}"));
    let (_, leaf) = X509Certificate::from_der(der).map_err(|error| bad(&error.to_string()))?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| bad(&error.to_string()))?;
    let names = names
        .map(|extension| &extension.value.general_names[..])
        .unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
        .collect();
    let &[spiffe_id] = &uris[..] else {
        return Err(bad(&format!("{} URI names, an SVID has exactly one", uris.len())));
    };
    if leaf.is_ca() {
        return Err(bad("is an authority's, not an SVID"));
    }
    let hosts = names.iter().filter_map(|name| {
        if let GeneralName::DNSName(host) = name {
            Some((*host).to_owned())
        } else {
            None
        }
    });
    Ok(Peer {
        spiffe_id: spiffe_id.into(),
        hosts: hosts.collect(),
    })
}

/// The end of a leaf's validity, seconds since the epoch.
pub fn not_after(der: &[u8]) -> Result<u64, WrongPeer> {
    let (_, leaf) =
        X509Certificate::from_der(der).map_err(|error| WrongPeer(format!("peer's certificate: {error}")))?;
    Ok(u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0))
}

fn wrong(error: WrongPeer) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Whom a client calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The identity that must answer.
    pub spiffe_id: Arc<str>,
    /// The host that its certificate must name.
    pub host: Arc<str>,
}

impl Expected {
    /// Is the peer exactly the one that is called?
    pub fn check(&self, peer: &Peer) -> Result<(), WrongPeer> {
        if peer.spiffe_id != self.spiffe_id {
            return Err(WrongPeer(format!(
                "{} answered, not {}",
                peer.spiffe_id, self.spiffe_id
            )));
        }
        if !peer.hosts.iter().any(|host| host.eq_ignore_ascii_case(&self.host)) {
            return Err(WrongPeer(format!(
                "{} answered from {}, not from {}",
                peer.spiffe_id,
                peer.hosts.join(", "),
                self.host
            )));
        }
        Ok(())
    }
}

/// A client's side: `svid` calls whom it expects, and nobody else may answer.
pub fn client_config(trust: Arc<Trust>, svid: &Svid, expected: Expected) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(ServerVerifier { trust, expected });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The server's side: the name that is asked for selects the SVID, every client shows its own.
pub fn server_config(shared: Arc<Shared>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier(shared.clone())))
        .with_cert_resolver(Arc::new(BySni(shared)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

struct BySni(Arc<Shared>);

impl fmt::Debug for BySni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BySni")
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let svids = self.0.svids();
        svids
            .by_sni(&hello.server_name()?.to_ascii_lowercase())
            .map(|svid| svid.key.clone())
    }
}

struct ServerVerifier {
    trust: Arc<Trust>,
    expected: Expected,
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerVerifier({})", self.expected.spiffe_id)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = self.trust.server(&chain(leaf, rest), now)?;
        self.expected.check(&peer).map_err(wrong)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

struct ClientVerifier(Arc<Shared>);

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.trust().client(&chain(leaf, rest), now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn chain<'a>(leaf: &CertificateDer<'a>, rest: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(rest).cloned().collect()
}
