//! What a configuration consists of: units, services and their rules, ready to be matched.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::traffic::Traffic;
use super::{ConfigError, bad};
use crate::balance::circuit::{Circuit, Standing};
use crate::claims::TokenMatch;
use crate::glob::Glob;
use crate::limit::Limit;
use crate::token::Issuers;

/// How long clients that speak HTTP are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a head to its end, from its first byte.
    pub head: Duration,
    /// For more of a request's body, and for the client to take a piece of an answer.
    pub stall: Duration,
    /// For another request on an open connection.
    pub idle: Duration,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
    Tls,
    /// What the client's first bytes tell, each connection for itself.
    Auto,
}

impl Protocol {
    /// The word of the policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Auto => "auto",
        }
    }

    /// Are its requests read, and judged one by one?
    pub fn is_read(self) -> bool {
        self == Self::Http || self.is_http2()
    }

    /// May its requests be read?
    pub fn can_be_read(self) -> bool {
        self.is_read() || self == Self::Auto
    }

    /// Are connections watched for what they tell?
    pub fn is_watched(self) -> bool {
        matches!(self, Self::Auto | Self::Tls)
    }

    /// Where each connection tells for itself, what this one has told.
    pub fn told(self, told: Option<Self>) -> Self {
        match (self, told) {
            (Self::Auto, Some(told)) => told,
            (said, _) => said,
        }
    }

    /// Does the application speak HTTP/2?
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }

    pub(super) fn parse(at: &str, word: &str) -> Result<Self, ConfigError> {
        [Self::Http, Self::Http2, Self::Grpc, Self::Tcp, Self::Tls, Self::Auto]
            .into_iter()
            .find(|protocol| protocol.as_str() == word)
            .ok_or_else(|| bad(at, word, "a protocol (http, http2, grpc, tcp, tls, auto)"))
    }
}

/// Which source address the application sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAddress {
    /// Kept, unless the address that is delivered to is loopback.
    Auto,
    /// The client's own.
    Keep,
    /// Loopback.
    Local,
}

/// `Audit` records what it would refuse, and lets it pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mode {
    Enforce,
    Audit,
}

/// Which requests get a line in the unit's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AccessLog {
    All,
    Errors,
    None,
}

/// A port that a local unit serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Port {
    pub port: u16,
    pub protocol: Protocol,
    pub client_address: ClientAddress,
}

impl Port {
    /// The same, when a connection has told what is spoken ([`Protocol::told`]).
    pub fn told(self, told: Option<Protocol>) -> Self {
        Self {
            protocol: self.protocol.told(told),
            ..self
        }
    }
}

/// `/products/*` is everything that begins with `/products/`; without a star the whole path.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PathPattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl PathPattern {
    /// Matches a path in its normal form.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
        }
    }
}

/// What a rule asks of a request, beyond caller and port.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct RequestMatch {
    pub methods: Vec<Box<str>>,
    pub paths: Vec<PathPattern>,
    /// Name in lower case, exact value.
    pub headers: Vec<(Box<str>, Box<str>)>,
    pub token: Option<TokenMatch>,
}

impl RequestMatch {
    /// Whether the connection alone cannot tell.
    pub fn asks(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty() && self.token.is_none())
    }
}

/// Compiled `InboundRule`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct InboundRule {
    pub rule: Arc<str>,
    pub callers: Vec<Glob>,
    pub ports: Vec<u16>,
    pub request: RequestMatch,
    /// Recorded, not in force.
    pub audit: bool,
}

/// Where plain-text callers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A process of this host.
    Local,
    /// An address in a network.
    Network(IpNet),
}

/// Compiled `PlaintextRule`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct PlaintextRule {
    pub rule: Arc<str>,
    pub sources: Vec<Source>,
    pub ports: Vec<u16>,
    pub request: RequestMatch,
}

/// What an outbound rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum OutboundTarget {
    Service(Box<str>),
    Host(Box<str>),
    Network(IpNet),
}

/// Compiled `OutboundRule`; port 0 means any.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct OutboundRule {
    pub rule: Arc<str>,
    pub target: OutboundTarget,
    pub port: u16,
}

/// Who is asked about requests that the rules let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gatekeeper {
    /// `file:line`.
    pub rule: Arc<str>,
    /// Its service.
    pub service: Arc<str>,
    /// It answers within this.
    pub timeout: Duration,
    /// A request may go on about which it says nothing.
    pub may_be_silent: bool,
}

/// A meshed unit of this host.
#[derive(Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Unit {
    pub unit: Arc<str>,
    pub number: u32,
    pub spiffe_id: Arc<str>,
    pub sni: Arc<str>,
    pub service: Arc<str>,
    pub ports: Vec<Port>,
    pub deliver: Vec<IpAddr>,
    pub mode: Mode,
    pub allow: Vec<InboundRule>,
    pub deny: Vec<InboundRule>,
    pub plaintext: Vec<PlaintextRule>,
    pub rule_default: Arc<str>,
    /// `FILE:no-plaintext`, made of `rule_default`.
    pub rule_plaintext_default: Arc<str>,
    pub outbound: Option<Vec<OutboundRule>>,
    pub rule_outbound_default: Arc<str>,
    pub access_log: AccessLog,
    /// The share of traces begun here that are sampled, 0..1.
    pub trace: f64,
    /// What ends in an error is recorded all the same.
    pub trace_errors: bool,
    /// Its identity was taken back: it serves nobody and calls no service.
    pub revoked: bool,
    /// Whose tokens it believes; `None`: it reads none.
    pub tokens: Option<Arc<Issuers>>,
    /// How much of it callers may have; all that fit hold.
    pub limits: Vec<Limit>,
    /// Who is asked about what they leave.
    pub gatekeeper: Option<Arc<Gatekeeper>>,
}

impl Unit {
    /// The declared port of this number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Header fields of clients that its application does not get: it has them from tokens only.
    pub fn withheld(&self) -> &[Box<str>] {
        self.tokens.as_ref().map_or(&[], |issuers| &issuers.withheld)
    }
}

/// In what OTLP is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Otlp {
    Grpc,
    Http,
}

/// The collector of traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// As a person wrote it.
    pub endpoint: Box<str>,
    /// What it speaks.
    pub protocol: Otlp,
    /// In TLS?
    pub is_tls: bool,
    /// Its name: what TLS must show, and what it is asked as.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
    /// Of HTTP.
    pub path: Box<str>,
    /// Where its name leads.
    pub addresses: Vec<IpAddr>,
    /// Sent with every request.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// DER certificates that its chain must end in; none: what the system trusts.
    pub ca: Vec<Vec<u8>>,
    /// Spans that wait for it at most.
    pub queue: usize,
}

/// Callers of the VIP say `port`; it goes to the endpoints' `target` port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ServicePort {
    pub port: u16,
    pub target: u16,
    pub protocol: Protocol,
}

impl ServicePort {
    /// The same, when a connection has told what is spoken ([`Protocol::told`]).
    pub fn told(self, told: Option<Protocol>) -> Self {
        Self {
            protocol: self.protocol.told(told),
            ..self
        }
    }
}

/// One workload that serves a service. Shown as a person reads it: `unit on host`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Digest of service, unit and host: the same in every snapshot, so that load counts outlive a change. For counts
    /// only; pools are keyed by identity.
    pub id: u64,
    /// The unit's name.
    pub unit: Arc<str>,
    /// The host's name.
    pub host: Arc<str>,
    /// The identity that must answer.
    pub spiffe_id: Arc<str>,
    /// The server name that selects it.
    pub sni: Arc<str>,
    /// The host's addresses.
    pub addresses: Vec<IpAddr>,
    /// The address by which it was called, where it was called by one ([`Endpoint::at`]).
    pub called: Option<IpAddr>,
    /// The peer proxy's port.
    pub wire_port: u16,
    /// The unit, where it runs on this host: one pass, no wire.
    pub local: Option<Arc<Unit>>,
    /// How far it is from this host.
    pub distance: Distance,
    /// When it was added to a service that had others; not set where it was there from the beginning.
    pub joined: OnceLock<Instant>,
    /// By [`Endpoint::standing`].
    pub standing: OnceLock<Arc<Standing>>,
}

/// How far an endpoint is from its caller, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// On the same host.
    Host,
    /// In the same zone.
    Zone,
    /// Anywhere else.
    Far,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.unit, self.host)
    }
}

impl Endpoint {
    /// What its callers on this host know of it, by whichever config.
    pub fn standing(&self) -> &Arc<Standing> {
        self.standing.get_or_init(Arc::default)
    }

    /// The endpoint as it is called by one of its addresses: reached there and nowhere else. Hosts say themselves which
    /// addresses they have, and must not get what is sent to others'.
    pub fn at(&self, address: IpAddr) -> Arc<Self> {
        let address = address.to_canonical();
        Arc::new(Self {
            addresses: vec![address],
            called: Some(address),
            ..self.clone()
        })
    }
}

/// What callers can call.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Service {
    pub name: Arc<str>,
    pub vips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub traffic: Traffic,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// By [`Service::circuit`].
    pub circuit: OnceLock<Arc<Circuit>>,
}

impl Service {
    /// What its callers on this host have in common, by whichever config.
    pub fn circuit(&self) -> &Arc<Circuit> {
        self.circuit.get_or_init(Arc::default)
    }

    /// The declared port that callers of the VIP mean.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The port, where all that callers may say mean one.
    pub fn only_port(&self) -> Option<&ServicePort> {
        let first = self.ports.first()?;
        let is_one = self.ports.iter().all(|port| port.target == first.target);
        is_one.then_some(first)
    }
}
