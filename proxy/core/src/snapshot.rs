//! The snapshot as the agent sends it: the words of `hostmesh/wire/snapshot.py`, nothing more.
//!
//! Values only, unknown fields are errors. `config.rs` turns it into what the hot path reads. Both sides read
//! `tests/vectors/snapshot/*.json`. Durations are milliseconds, certificates base64 DER.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// The only version that this proxy takes: agent and proxy are of one version.
pub const SNAPSHOT_VERSION: u32 = 1;

/// All that the proxy knows. `revision` is the digest of the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are documented where the contract is
pub struct Snapshot {
    pub version: u32,
    pub revision: String,
    pub trust_domain: String,
    pub host: String,
    #[serde(default)]
    pub zone: String,
    pub addresses: Vec<String>,
    pub marks: Marks,
    pub listeners: Listeners,
    #[serde(default)]
    pub timeouts: Timeouts,
    pub trust_bundle: Vec<String>,
    pub units: Vec<Unit>,
    pub services: Vec<Service>,
    #[serde(default)]
    pub revoked: Vec<Revoked>,
    #[serde(default = "w3c")]
    pub propagate: Vec<String>,
    #[serde(default)]
    pub traces: Option<Traces>,
    #[serde(default)]
    pub metrics: Metrics,
    #[serde(default)]
    pub overload: Overload,
}

/// When the proxy refuses requests. 0: never for that reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Overload {
    pub delay_ms: u64,
    pub requests: u32,
}

/// How many series of counters there may be, and when a quiet one ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Metrics {
    pub max_series: u32,
    pub expire_ms: u64,
}

/// Those of `hostmesh/policy/settings.py`.
impl Default for Metrics {
    fn default() -> Self {
        Self {
            max_series: 4_000,
            expire_ms: 3_600_000,
        }
    }
}

fn w3c() -> Vec<String> {
    vec!["w3c".to_owned()]
}

/// The collector of traces. `addresses` are those of `host`; `ca` empty: what the system trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Traces {
    pub endpoint: String,
    pub protocol: String,
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub addresses: Vec<String>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub ca: Vec<String>,
    pub queue: u32,
}

/// Certificates that count for nothing. `kind`: host, unit or serial; `begun_by` 0: whenever they were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Revoked {
    pub kind: String,
    pub name: String,
    pub begun_by: u64,
    pub reason: String,
}

/// Packet mark bits. `unit` masks the unit's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Marks {
    pub unit: u32,
    pub outbound: u32,
    pub proxy: u32,
    pub inbound: u32,
}

/// The proxy's own ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Listeners {
    pub outbound: u16,
    pub plaintext: u16,
    pub wire: u16,
    pub dns: u16,
}

/// How long clients that speak HTTP are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Timeouts {
    pub head_ms: u64,
    pub stall_ms: u64,
    pub idle_ms: u64,
}

/// Those of `hostmesh/policy/settings.py`: for a snapshot that was kept by a proxy which had none.
impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head_ms: 30_000,
            stall_ms: 300_000,
            idle_ms: 3_600_000,
        }
    }
}

/// A port that a local unit serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Port {
    pub port: u16,
    pub protocol: String,
    pub client_address: String,
}

/// A claim's value in a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum ClaimValue {
    Bool(bool),
    Number(i64),
    Text(String),
}

/// What a rule asks of a token. `issuer` empty: any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TokenMatch {
    #[serde(default)]
    pub issuer: String,
    #[serde(default)]
    pub audience: Vec<String>,
    #[serde(default)]
    pub claims: Vec<(String, Vec<ClaimValue>)>,
}

/// A public key of an issuer, base64 DER (SubjectPublicKeyInfo). `kid` empty: it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TokenKey {
    pub kid: String,
    pub algorithms: Vec<String>,
    pub key: String,
}

/// Whose tokens a unit believes. `token`: `header:NAME` or `cookie:NAME`; `headers`: header and claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TokenIssuer {
    pub rule: String,
    pub issuer: String,
    pub audience: Vec<String>,
    pub keys: Vec<TokenKey>,
    pub token: String,
    pub forward: bool,
    pub leeway_ms: u64,
    pub headers: Vec<(String, String)>,
}

/// Who may call, by identity: all lists that are not empty must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct InboundRule {
    pub rule: String,
    pub callers: Vec<String>,
    #[serde(default)]
    pub ports: Vec<u16>,
    #[serde(default)]
    pub methods: Vec<String>,
    #[serde(default)]
    pub paths: Vec<String>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub jwt: Option<TokenMatch>,
    #[serde(default)]
    pub audit: bool,
}

/// How much of a unit callers may have: `requests` in `window_ms`, `burst` of them at once; `concurrent` at a time. 0: any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Limit {
    pub of: InboundRule,
    pub requests: u32,
    pub window_ms: u64,
    pub burst: u32,
    pub concurrent: u32,
    pub per: String,
}

/// Who is asked about what rules and limits let pass. `on_error`: deny or allow, where it gives no verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Authorize {
    pub rule: String,
    pub service: String,
    pub timeout_ms: u64,
    pub on_error: String,
}

/// Callers without identity: CIDR networks, or `local`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PlaintextRule {
    pub rule: String,
    pub sources: Vec<String>,
    pub ports: Vec<u16>,
    #[serde(default)]
    pub methods: Vec<String>,
    #[serde(default)]
    pub paths: Vec<String>,
}

/// What a unit may call: exactly one of service, host, network is not empty; port 0 means any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct OutboundRule {
    pub rule: String,
    #[serde(default)]
    pub service: String,
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub network: String,
    #[serde(default)]
    pub port: u16,
}

/// A meshed unit of this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Unit {
    pub unit: String,
    pub number: u32,
    pub spiffe_id: String,
    pub sni: String,
    pub service: String,
    pub ports: Vec<Port>,
    pub deliver: Vec<String>,
    pub mode: String,
    pub allow: Vec<InboundRule>,
    pub deny: Vec<InboundRule>,
    pub plaintext: Vec<PlaintextRule>,
    pub rule_default: String,
    pub outbound: Option<Vec<OutboundRule>>,
    pub rule_outbound_default: String,
    pub access_log: String,
    pub trace: f64,
    #[serde(default)]
    pub trace_errors: bool,
    #[serde(default)]
    pub revoked: bool,
    #[serde(default)]
    pub jwt: Vec<TokenIssuer>,
    #[serde(default)]
    pub limits: Vec<Limit>,
    #[serde(default)]
    pub authorize: Option<Authorize>,
}

/// How callers try again. `per_try_timeout_ms` 0: none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Retries {
    pub attempts: u32,
    pub per_try_timeout_ms: u64,
    pub on: Vec<String>,
    pub budget: f64,
    pub non_idempotent: bool,
    #[serde(default)]
    pub backoff_ms: u64,
    #[serde(default)]
    pub max_backoff_ms: u64,
}

/// When another endpoint is asked, too. `attempts`: with the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Hedge {
    pub after_ms: u64,
    pub attempts: u32,
    #[serde(default)]
    pub non_idempotent: bool,
}

pub use crate::snapshot_routes::{HeaderEdits, Inject, Mirror, Redirect, Respond, Rewrite, Route, RouteMatch, Share};

/// What consistent hashing goes by: `header:NAME`, `cookie:NAME` or `source`. `bound` 0: none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ConsistentHash {
    pub on: String,
    pub bound: f64,
}

/// When callers of a service leave it, or one of its endpoints, alone. 0: no limit, no ejection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Breaker {
    pub max_connections: u32,
    pub max_pending: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    pub consecutive_errors: u32,
    pub eject_ms: u64,
    pub max_ejected: f64,
    pub rule: String,
}

/// How callers behave towards a service. Times of 0: none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Traffic {
    pub timeout_ms: u64,
    pub retries: Option<Retries>,
    pub balance: String,
    pub rule: String,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub connect_timeout_ms: u64,
    #[serde(default)]
    pub idle_timeout_ms: u64,
    #[serde(default)]
    pub breaker: Option<Breaker>,
    #[serde(default)]
    pub hash: Option<ConsistentHash>,
    #[serde(default = "any")]
    pub prefer: String,
    #[serde(default)]
    pub slow_start_ms: u64,
    #[serde(default)]
    pub panic: f64,
    /// For people.
    #[serde(default, skip_serializing)]
    pub lines: IgnoredAny,
    #[serde(default)]
    pub hedge: Option<Hedge>,
}

fn any() -> String {
    "any".to_owned()
}

/// Callers of the VIP say `port`; it goes to the endpoints' `target` port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ServicePort {
    pub port: u16,
    pub target: u16,
    pub protocol: String,
}

/// One workload that serves a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub unit: String,
    pub host: String,
    pub spiffe_id: String,
    pub sni: String,
    pub addresses: Vec<String>,
    pub wire_port: u16,
    #[serde(default)]
    pub zone: String,
}

/// What callers can call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Service {
    pub name: String,
    pub vips: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub traffic: Traffic,
    pub endpoints: Vec<Endpoint>,
}
