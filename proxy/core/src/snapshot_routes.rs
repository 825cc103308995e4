//! The routes of a service as the agent sends them: the words of `hostmesh/wire/snapshot.py`, nothing more.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Hedge, Retries};

/// What some requests to a service meet; the first that fits. `timeout_ms` 0, `retries` and `hedge` none: the service's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are documented where the contract is
pub struct Route {
    pub name: String,
    pub rule: String,
    #[serde(default)]
    pub r#match: RouteMatch,
    #[serde(default)]
    pub to: Vec<Share>,
    #[serde(default)]
    pub sticky: String,
    #[serde(default)]
    pub mirror: Option<Mirror>,
    #[serde(default)]
    pub redirect: Option<Redirect>,
    #[serde(default)]
    pub rewrite: Option<Rewrite>,
    #[serde(default)]
    pub respond: Option<Respond>,
    #[serde(default)]
    pub fault: Option<Inject>,
    #[serde(default)]
    pub request_headers: Option<HeaderEdits>,
    #[serde(default)]
    pub response_headers: Option<HeaderEdits>,
    #[serde(default)]
    pub timeout_ms: u64,
    #[serde(default)]
    pub retries: Option<Retries>,
    #[serde(default)]
    pub hedge: Option<Hedge>,
}

/// All that is not empty must fit. `*` as a value: it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RouteMatch {
    #[serde(default)]
    pub path: String,
    #[serde(default)]
    pub methods: Vec<String>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub query: Vec<(String, String)>,
    #[serde(default)]
    pub sni: String,
}

/// A service, and its weight among the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Share {
    pub service: String,
    pub weight: u32,
}

/// A copy of so many percent goes to another service; its answer is thrown away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Mirror {
    pub to: String,
    pub percent: f64,
    pub max_pending: u32,
}

/// Answered with another place to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Redirect {
    pub to: String,
    pub status: u16,
}

/// Asked for under another path or host; empty: as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Rewrite {
    #[serde(default)]
    pub path: String,
    #[serde(default)]
    pub host: String,
}

/// Answered by the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Respond {
    pub status: u16,
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// Trouble on purpose: so many percent are held back, so many answered with `abort`. 0: none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Inject {
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(default)]
    pub delay_percent: f64,
    #[serde(default)]
    pub abort: u16,
    #[serde(default)]
    pub abort_percent: f64,
}

/// What is done to a head's fields: taken out, put in place of all of the name, put behind them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HeaderEdits {
    #[serde(default)]
    pub set: Vec<(String, String)>,
    #[serde(default)]
    pub add: Vec<(String, String)>,
    #[serde(default)]
    pub remove: Vec<String>,
}
