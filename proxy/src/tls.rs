//! Turns SVIDs and the trust bundle into TLS 1.3 sessions whose peers are who they must be.
//!
//! Law: a peer is known by the one URI SAN of a leaf that chains to the bundle in force (X.509-SVID, sections 2, 4 and
//! 5); names in the session are never believed. No session is resumed: each is judged by the bundle of its time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::revoked::Revoked;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::peer::{Claim, Peer, Reason, Seen, WrongPeer, check_size, read_leaf, shown};
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

/// A trust bundle, ready to judge chains.
pub struct Trust {
    domain: String,
    bundle: Vec<Vec<u8>>,
    roots: Arc<RootCertStore>,
    revoked: Arc<Revoked>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// The cryptography of all TLS here.
pub fn provider() -> Arc<CryptoProvider> {
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
            revoked: Arc::default(),
            clients: None,
        }
    }

    /// Trusts the chains that end in a certificate (DER) of the bundle, for identities of one trust domain, but for those
    /// that are revoked.
    pub fn new(domain: &str, bundle: &[Vec<u8>], revoked: Arc<Revoked>) -> Result<Self, BadBundle> {
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
            revoked,
            clients,
        })
    }

    /// Is this the trust that these would make?
    pub fn is_of(&self, domain: &str, bundle: &[Vec<u8>], revoked: &Revoked) -> bool {
        self.has_bundle(domain, bundle) && *self.revoked == *revoked
    }

    /// The same roots for the same domain?
    pub fn has_bundle_of(&self, other: &Self) -> bool {
        self.has_bundle(&other.domain, &other.bundle)
    }

    fn has_bundle(&self, domain: &str, bundle: &[Vec<u8>]) -> bool {
        self.domain == domain && self.bundle == bundle
    }

    /// Judges the chain of a server; its identity is then for the caller to compare.
    pub fn server(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, Error> {
        let (peer, leaf, rest) = self.leaf(chain)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, algorithms().all)?;
        self.standing(peer)
    }

    /// Judges the chain of a client.
    pub fn client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, Error> {
        let (peer, leaf, rest) = self.leaf(chain)?;
        let clients = self.clients.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        clients.verify_client_cert(leaf, rest, now)?;
        self.standing(peer)
    }

    /// What the peer's certificate is revoked by, if it is.
    pub fn revoked_by(&self, peer: &Peer) -> Option<String> {
        self.revoked.names(&peer.certificate())
    }

    fn leaf<'a, 'b>(&self, chain: &'a [CertificateDer<'b>]) -> Result<Judged<'a, 'b>, Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        check_size(chain)?;
        let peer = read_leaf(leaf)?;
        let path = peer
            .spiffe_id
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(&*self.domain));
        match path {
            Some(path) if path.starts_with('/') => Ok((peer, leaf, rest)),
            _ => {
                let text = format!("{} is not of trust domain {}", shown(&peer.spiffe_id), self.domain);
                Err(WrongPeer::new(Reason::WrongTrustDomain, text).into())
            }
        }
    }

    fn standing(&self, peer: Peer) -> Result<Peer, Error> {
        match self.revoked_by(&peer) {
            None => Ok(peer),
            Some(_) => Err(CertificateError::Revoked.into()),
        }
    }
}

type Judged<'a, 'b> = (Peer, &'a CertificateDer<'b>, &'a [CertificateDer<'b>]);

/// Now, or the moment of the certificate's life that is nearest: what was trusted once is judged again by trust alone. A
/// clock that jumped must not end what is open; that a certificate is over ends it in its own way.
pub fn within_life(peer: &Peer) -> UnixTime {
    let now = UnixTime::now().as_secs();
    UnixTime::since_unix_epoch(Duration::from_secs(now.min(peer.not_after).max(peer.not_before)))
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
            let text = format!("{} answered, not {}", peer.spiffe_id, self.spiffe_id);
            return Err(WrongPeer::new(Reason::WrongIdentity, text));
        }
        if !peer.hosts.iter().any(|host| host.eq_ignore_ascii_case(&self.host)) {
            let (id, hosts) = (&peer.spiffe_id, peer.hosts.join(", "));
            let text = format!("{id} answered from {hosts}, not from {}", self.host);
            return Err(WrongPeer::new(Reason::WrongIdentity, text));
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

/// The server's side of one handshake: the name that is asked for selects the SVID, the client shows its own. What is
/// seen of it is written down in `seen`.
pub fn server_config(shared: &Arc<Shared>, seen: &Arc<Seen>) -> Result<ServerConfig, Error> {
    let (shared, seen) = (shared.clone(), seen.clone());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier(shared.clone(), seen.clone())))
        .with_cert_resolver(Arc::new(BySni(shared, seen)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

struct BySni(Arc<Shared>, Arc<Seen>);

impl fmt::Debug for BySni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BySni")
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let found = self.0.svids().by_sni(&name).map(|svid| svid.key.clone());
        if found.is_none() {
            self.1.nobody.get_or_init(|| ());
        }
        self.1.sni.get_or_init(|| name);
        found
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
        self.expected.check(&peer)?;
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

struct ClientVerifier(Arc<Shared>, Arc<Seen>);

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
        let judged = self.0.trust().client(&chain(leaf, rest), now);
        judged.map(|_| ClientCertVerified::assertion()).inspect_err(|_| {
            self.1.claim.get_or_init(|| Claim::of(leaf));
        })
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
