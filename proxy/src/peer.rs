//! Turns a leaf into what it says of its holder, and a handshake that failed into a reason of a fixed set.
//!
//! A leaf is held to X.509-SVID, sections 2, 4 and 5, before a signature is looked at: what is none costs little.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use hostmesh_proxy_core::revoked::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// Certificates of a chain at most: leaf, intermediate, and one more for a root that is being replaced.
const MOST_CERTIFICATES: usize = 3;
/// Bytes of a chain at most; ours have about 1,300.
const MOST_BYTES: usize = 16 * 1024;
/// Of what a stranger's certificate says, so much is repeated.
const MOST_SAID: usize = 200;

/// Why a handshake came to nothing. The words are label values of `hostmesh_proxy_tls_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each is its word
pub enum Reason {
    Expired,
    NotYetValid,
    UnknownIssuer,
    WrongTrustDomain,
    WrongIdentity,
    WrongUsage,
    WeakKey,
    BadSignature,
    TooLong,
    UnknownExtension,
    Revoked,
    Malformed,
    NoCertificate,
    UnknownName,
    WrongProtocol,
    RefusedByPeer,
    TimedOut,
    Closed,
    Other,
}

impl Reason {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::UnknownIssuer => "unknown-issuer",
            Self::WrongTrustDomain => "wrong-trust-domain",
            Self::WrongIdentity => "wrong-identity",
            Self::WrongUsage => "wrong-usage",
            Self::WeakKey => "weak-key",
            Self::BadSignature => "bad-signature",
            Self::TooLong => "too-long",
            Self::UnknownExtension => "unknown-extension",
            Self::Revoked => "revoked",
            Self::Malformed => "malformed",
            Self::NoCertificate => "no-certificate",
            Self::UnknownName => "unknown-name",
            Self::WrongProtocol => "wrong-protocol",
            Self::RefusedByPeer => "refused-by-peer",
            Self::TimedOut => "timed-out",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }

    /// As what decided: `builtin:` and the word.
    pub fn rule(self) -> String {
        format!("builtin:{}", self.as_str())
    }

    /// Of what went wrong with a TLS connection.
    pub fn of(error: &io::Error) -> Self {
        if let Some(tls) = tls_error(error) {
            return Self::of_tls(tls);
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Other,
        }
    }

    /// Of what TLS says.
    pub fn of_tls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(bad) => Self::of_certificate(bad),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(_) => Self::RefusedByPeer,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::WrongProtocol,
            Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Self::Malformed,
            _ => Self::Other,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as Bad;
        match error {
            Bad::Expired | Bad::ExpiredContext { .. } => Self::Expired,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => Self::NotYetValid,
            Bad::UnknownIssuer => Self::UnknownIssuer,
            Bad::BadSignature => Self::BadSignature,
            Bad::BadEncoding => Self::Malformed,
            Bad::Revoked => Self::Revoked,
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => Self::WrongUsage,
            Bad::UnsupportedSignatureAlgorithmContext { .. }
            | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Self::WeakKey,
            Bad::Other(other) => WrongPeer::of(other).map_or(Self::Other, |wrong| wrong.reason),
            _ => Self::Other,
        }
    }
}

/// What TLS said, where it was TLS.
fn tls_error(error: &io::Error) -> Option<&Error> {
    let mut source = error.get_ref();
    while let Some(inner) = source {
        if let Some(tls) = inner.downcast_ref::<Error>() {
            return Some(tls);
        }
        source = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    }
    None
}

/// Why a connection came to nothing, for a person.
pub fn why(error: &io::Error) -> String {
    tls_error(error).map_or_else(|| error.to_string(), why_tls)
}

/// The same of what TLS says: our own reasons in our own words, which rustls would show as it shows them to programmers.
pub fn why_tls(error: &Error) -> String {
    let wrong = match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => WrongPeer::of(other),
        _ => None,
    };
    wrong.map_or_else(|| error.to_string(), WrongPeer::to_string)
}

/// A peer that is not whom it must be, and why.
#[derive(Debug)]
pub struct WrongPeer {
    /// Its word.
    pub reason: Reason,
    text: String,
}

impl WrongPeer {
    /// With a sentence for a person.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    fn of(error: &OtherError) -> Option<&Self> {
        error.0.downcast_ref()
    }
}

impl fmt::Display for WrongPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for WrongPeer {}

impl From<WrongPeer> for Error {
    fn from(wrong: WrongPeer) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong))))
    }
}

/// What a leaf says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The one URI SAN.
    pub spiffe_id: Arc<str>,
    /// The DNS SANs: the host.
    pub hosts: Vec<String>,
    /// Lower-case hex without leading zeros.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before: u64,
    /// Seconds since the epoch.
    pub not_after: u64,
}

impl Peer {
    /// As the revoked are asked for it.
    pub fn certificate(&self) -> Certificate<'_> {
        Certificate {
            spiffe_id: &self.spiffe_id,
            hosts: &self.hosts,
            serial: &self.serial,
            not_before: self.not_before,
        }
    }
}

/// Bounds the work that a chain can ask for.
pub fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), WrongPeer> {
    let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
    if chain.len() > MOST_CERTIFICATES || bytes > MOST_BYTES {
        let text = format!(
            "a chain of {} certificates and {bytes} bytes, at most {MOST_CERTIFICATES} and {MOST_BYTES} are looked at",
            chain.len()
        );
        return Err(WrongPeer::new(Reason::TooLong, text));
    }
    Ok(())
}

/// Reads a leaf that is an SVID: one URI SAN, no authority, a key and usages as they must be.
pub fn read_leaf(der: &[u8]) -> Result<Peer, WrongPeer> {
    let bad = |reason, why: &dyn fmt::Display| WrongPeer::new(reason, format!("peer's certificate: {why}"));
    let (rest, leaf) = X509Certificate::from_der(der).map_err(|error| bad(Reason::Malformed, &error))?;
    if !rest.is_empty() {
        return Err(bad(Reason::Malformed, &"bytes after its end"));
    }
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| bad(Reason::Malformed, &error))?;
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
        let why = format!("{} URI names, an SVID has exactly one", uris.len());
        return Err(bad(Reason::WrongIdentity, &why));
    };
    check_usage(&leaf)?;
    let hosts = names.iter().filter_map(|name| {
        if let GeneralName::DNSName(host) = name {
            Some((*host).to_owned())
        } else {
            None
        }
    });
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    Ok(Peer {
        spiffe_id: spiffe_id.into(),
        hosts: hosts.collect(),
        serial: serial(&leaf),
        not_before: seconds(leaf.validity().not_before.timestamp()),
        not_after: seconds(leaf.validity().not_after.timestamp()),
    })
}

fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), WrongPeer> {
    let bad = |reason, why: &str| Err(WrongPeer::new(reason, format!("peer's certificate: {why}")));
    if leaf.is_ca() {
        return bad(Reason::WrongUsage, "is an authority's, not an SVID");
    }
    match leaf.key_usage() {
        Ok(Some(usage)) if usage.value.key_cert_sign() || usage.value.crl_sign() => {
            return bad(Reason::WrongUsage, "may sign certificates, an SVID may not");
        }
        Ok(Some(usage)) if usage.value.digital_signature() => {}
        Ok(_) => return bad(Reason::WrongUsage, "its key is not for digital signatures"),
        Err(_) => return bad(Reason::Malformed, "its usage does not parse"),
    }
    let unknown = |parsed: &ParsedExtension<'_>| {
        matches!(
            parsed,
            ParsedExtension::UnsupportedExtension { .. }
                | ParsedExtension::ParseError { .. }
                | ParsedExtension::Unparsed
        )
    };
    if let Some(extension) = leaf
        .iter_extensions()
        .find(|extension| extension.critical && unknown(extension.parsed_extension()))
    {
        let why = format!(
            "has a critical extension that nobody here knows: {}",
            shown(&extension.oid.to_string())
        );
        return bad(Reason::UnknownExtension, &why);
    }
    let key = &leaf.public_key().algorithm;
    let curve = key.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if key.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return bad(
            Reason::WeakKey,
            "its key is not ECDSA P-256, as all keys of the mesh are",
        );
    }
    Ok(())
}

fn serial(leaf: &X509Certificate<'_>) -> String {
    let hex: String = leaf
        .tbs_certificate
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex.trim_start_matches('0').to_owned()
}

/// What is seen of a peer on the way through a handshake, for the one who must tell why it failed.
#[derive(Debug, Default)]
pub struct Seen {
    /// The server name that was asked for, in lower case.
    pub sni: OnceLock<String>,
    /// Whom the certificate names. Nobody vouches for it.
    pub claim: OnceLock<Claim>,
    /// Of that name there is no SVID here.
    pub nobody: OnceLock<()>,
}

/// What a certificate that was refused says of itself.
#[derive(Debug)]
pub struct Claim {
    /// Its first SPIFFE ID; empty where there is none that can be shown.
    pub spiffe_id: String,
    /// Host, serial number and validity, in one line.
    pub details: String,
}

impl Claim {
    /// Reads what there is; what does not parse is said so.
    pub fn of(leaf: &[u8]) -> Self {
        let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
            return Self {
                spiffe_id: String::new(),
                details: "a certificate that does not parse".into(),
            };
        };
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names
            .map(|extension| &extension.value.general_names[..])
            .unwrap_or_default();
        let (mut spiffe_id, mut host) = (String::new(), String::new());
        for name in names {
            match name {
                GeneralName::URI(uri) if spiffe_id.is_empty() && uri.starts_with("spiffe://") => {
                    spiffe_id = shown(uri);
                }
                GeneralName::DNSName(name) if host.is_empty() => host = shown(name),
                _ => {}
            }
        }
        let validity = leaf.validity();
        let details = format!(
            "host {}, serial {}, valid {} to {}",
            if host.is_empty() { "none" } else { &host },
            shown(&serial(&leaf)),
            validity.not_before,
            validity.not_after
        );
        Self { spiffe_id, details }
    }
}

/// As much of what a stranger says as is repeated.
pub fn shown(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(MOST_SAID).collect()
}
