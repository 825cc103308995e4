//! Who may call whom: the twin of `hostmesh/policy/authorize.py`, which is the specification.
//!
//! Both are held to `tests/vectors/authorize.json`. Deny wins over allow, silence is a refusal, `mode = "audit"` turns a
//! refusal into a record. A connection is judged once where no rule in play asks about the request.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Mode, OutboundTarget, PathPattern, RequestMatch, Source, Unit};
use crate::error::Fault;
use crate::glob::Glob;
use crate::path::{self, Ambiguous};

/// A unit may call itself.
pub const RULE_SELF: &str = "builtin:self";
/// No `[outbound]`: everything may be called.
pub const RULE_NO_OUTBOUND_POLICY: &str = "builtin:no-outbound-policy";
/// The mark or server name is of no unit that is known.
pub const RULE_UNKNOWN_UNIT: &str = "builtin:unknown-unit";
/// The identity of the unit was taken back.
pub const RULE_REVOKED: &str = "builtin:revoked";
/// Another process holds the unit's port.
pub const RULE_LISTENER: &str = "builtin:listener";

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Refuse: 403 or a reset.
    Deny,
    /// Would be refused; the mode is audit, so go on and record it.
    AuditDeny,
    /// A path rule applies and the path has no one meaning: 400.
    BadPath,
}

impl Verdict {
    /// May the traffic go on?
    pub fn passes(self) -> bool {
        matches!(self, Self::Allow | Self::AuditDeny)
    }

    /// What a request is answered that may not go on.
    pub fn fault(self) -> Option<Fault> {
        match self {
            Self::Allow | Self::AuditDeny => None,
            Self::Deny => Some(Fault::Denied),
            Self::BadPath => Some(Fault::BadPath),
        }
    }
}

/// A verdict and the rule that decided (docs/architecture.md, "Rule names").
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: Arc<str>,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller<'a> {
    /// A SPIFFE ID, attested by certificate or, on the same host, by the kernel.
    Identity(&'a str),
    /// Plain text; `local`: from a process of this host.
    Plaintext {
        /// The source address.
        address: IpAddr,
        /// The kernel says that it comes from this host.
        local: bool,
    },
}

/// A request's headers, however they are kept.
pub trait Headers {
    /// Calls `see` with the value of every field line of this lower-case name.
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8]));
}

/// What rules may ask of a request. `path` is the target's path as it came, without the query.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a dyn Headers,
}

/// What a unit wants to call: whatever is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The port: of a service the one that its callers use.
    pub port: u16,
    /// The service's name, where it is one.
    pub service: Option<&'a str>,
    /// The names by which the unit looked up the address ([`crate::names`]): lower case, no trailing dot.
    pub hosts: &'a [Arc<str>],
    /// Where the unit connects to.
    pub address: Option<IpAddr>,
}

/// Judges a connection to a port of `unit`; one that is not declared is refused. `None`: it takes the request to tell.
pub fn connection(unit: &Unit, caller: &Caller<'_>, port: u16) -> Option<Decision> {
    judge(unit, caller, port, None, false)
}

/// Judges a connection whose bytes are carried unread, whatever is spoken on its port by now.
pub fn opaque(unit: &Unit, caller: &Caller<'_>, port: u16) -> Decision {
    judge(unit, caller, port, None, true).unwrap_or_else(|| default(unit, caller))
}

/// Judges one request on an HTTP port of `unit`.
pub fn request(unit: &Unit, caller: &Caller<'_>, port: u16, request: &Request<'_>) -> Decision {
    // Only the lack of a request leaves a question open.
    judge(unit, caller, port, Some(request), false).unwrap_or_else(|| default(unit, caller))
}

/// Judges what `unit` wants to call. Not softened by audit, which is about callers.
pub fn outbound(unit: &Unit, target: &Target<'_>) -> Decision {
    let allow = |rule: &str| Decision {
        verdict: Verdict::Allow,
        rule: rule.into(),
    };
    if target.service.is_some() && unit.revoked {
        return revoked();
    }
    if target.service.is_some_and(|service| *service == *unit.service) {
        return allow(RULE_SELF);
    }
    let Some(rules) = &unit.outbound else {
        return allow(RULE_NO_OUTBOUND_POLICY);
    };
    for rule in rules {
        let fits = match (&rule.target, target.service) {
            (OutboundTarget::Service(name), service) => service == Some(name),
            (_, Some(_)) => false, // a service of the mesh is named by its name only
            (OutboundTarget::Host(name), None) => target.hosts.iter().any(|host| **host == **name),
            (OutboundTarget::Network(network), None) => target
                .address
                .is_some_and(|address| network.contains(&address.to_canonical())),
        };
        if fits && (rule.port == 0 || rule.port == target.port) {
            return Decision {
                verdict: Verdict::Allow,
                rule: rule.rule.clone(),
            };
        }
    }
    Decision {
        verdict: Verdict::Deny,
        rule: unit.rule_outbound_default.clone(),
    }
}

/// How far a rule fits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    No,
    Yes,
    AsksRequest,
    BadPath,
}

/// A request with its path's normal form, made when the first rule asks for it.
struct Asked<'a> {
    request: Option<&'a Request<'a>>,
    is_http: bool,
    normal: OnceCell<Result<Cow<'a, str>, Ambiguous>>,
}

fn judge(
    unit: &Unit,
    caller: &Caller<'_>,
    port: u16,
    request: Option<&Request<'_>>,
    is_opaque: bool,
) -> Option<Decision> {
    if unit.revoked {
        return Some(revoked());
    }
    let Some(declared) = unit.port(port) else {
        return Some(Decision {
            verdict: Verdict::Deny, // whatever the mode: nobody knows what is there
            rule: unit.rule_default.clone(),
        });
    };
    let asked = Asked {
        request,
        is_http: declared.protocol.is_read() && !is_opaque,
        normal: OnceCell::new(),
    };
    if matches!(caller, Caller::Identity(id) if **id == *unit.spiffe_id) {
        return Some(Decision {
            verdict: Verdict::Allow,
            rule: RULE_SELF.into(),
        });
    }
    for rule in &unit.deny {
        if !(fits_caller(&rule.callers, caller) && fits_port(&rule.ports, port)) {
            continue;
        }
        match asked.fit_deny(&rule.request) {
            Fit::No => {}
            Fit::Yes => return Some(refuse(unit, Verdict::Deny, &rule.rule)),
            Fit::AsksRequest => return None,
            Fit::BadPath => return Some(refuse(unit, Verdict::BadPath, &rule.rule)),
        }
    }
    judge_allow(unit, caller, port, &asked)
}

fn judge_allow(unit: &Unit, caller: &Caller<'_>, port: u16, asked: &Asked<'_>) -> Option<Decision> {
    let mut bad_path = None;
    let mut see = |rule: &Arc<str>, fit: Fit| match fit {
        Fit::No => None,
        Fit::Yes => Some(Some(Decision {
            verdict: Verdict::Allow,
            rule: rule.clone(),
        })),
        Fit::AsksRequest => Some(None),
        Fit::BadPath => {
            bad_path.get_or_insert_with(|| rule.clone());
            None
        }
    };
    match caller {
        Caller::Identity(_) => {
            for rule in &unit.allow {
                if fits_caller(&rule.callers, caller)
                    && fits_port(&rule.ports, port)
                    && let Some(decided) = see(&rule.rule, asked.fit_allow(&rule.request))
                {
                    return decided;
                }
            }
        }
        Caller::Plaintext { address, local } => {
            for rule in &unit.plaintext {
                if fits_source(&rule.sources, *address, *local)
                    && fits_port(&rule.ports, port)
                    && let Some(decided) = see(&rule.rule, asked.fit_allow(&rule.request))
                {
                    return decided;
                }
            }
        }
    }
    Some(match bad_path {
        Some(rule) => refuse(unit, Verdict::BadPath, &rule),
        None => default(unit, caller),
    })
}

impl Asked<'_> {
    fn fit_allow(&self, wanted: &RequestMatch) -> Fit {
        if !wanted.asks() {
            return Fit::Yes;
        }
        if !self.is_http {
            return Fit::No; // nobody can show that opaque bytes are what the rule wants
        }
        let Some(request) = self.request else {
            return Fit::AsksRequest;
        };
        let methods = &wanted.methods;
        let method = methods.is_empty() || methods.iter().any(|method| **method == *request.method);
        let header = |(name, value): &(Box<str>, Box<str>)| {
            // One line of this name, no more: which of two the application would take is not known.
            let (mut lines, mut same) = (0, false);
            request.headers.each(name, &mut |line| {
                lines += 1;
                same = line == value.as_bytes();
            });
            lines == 1 && same
        };
        if !method || !wanted.headers.iter().all(header) {
            return Fit::No;
        }
        self.fit_path(&wanted.paths, request)
    }

    fn fit_deny(&self, wanted: &RequestMatch) -> Fit {
        if !wanted.asks() || !self.is_http {
            return Fit::Yes; // opaque bytes may be just what the rule refuses
        }
        let Some(request) = self.request else {
            return Fit::AsksRequest;
        };
        let methods = &wanted.methods;
        // Some applications take methods without regard to case (RFC 9110 says they should not).
        let header = |(name, value): &(Box<str>, Box<str>)| {
            let mut same = false;
            request.headers.each(name, &mut |line| same |= line == value.as_bytes());
            same
        };
        if !(methods.is_empty() || methods.iter().any(|method| method.eq_ignore_ascii_case(request.method)))
            || !wanted.headers.iter().all(header)
        {
            return Fit::No;
        }
        self.fit_path(&wanted.paths, request)
    }

    fn fit_path(&self, paths: &[PathPattern], request: &Request<'_>) -> Fit {
        if paths.is_empty() {
            return Fit::Yes;
        }
        let normal = self
            .normal
            .get_or_init(|| path::normal(request.path).map(|p| Cow::Owned(p.into_owned())));
        match normal {
            Err(_) => Fit::BadPath,
            Ok(path) if paths.iter().any(|pattern| pattern.matches(path)) => Fit::Yes,
            Ok(_) => Fit::No,
        }
    }
}

fn fits_caller(callers: &[Glob], caller: &Caller<'_>) -> bool {
    match caller {
        _ if callers.is_empty() => true,
        Caller::Identity(id) => callers.iter().any(|glob| glob.matches(id)),
        Caller::Plaintext { .. } => false,
    }
}

fn fits_source(sources: &[Source], address: IpAddr, local: bool) -> bool {
    sources.iter().any(|source| match source {
        Source::Local => local,
        Source::Network(network) => !local && network.contains(&address.to_canonical()),
    })
}

fn fits_port(ports: &[u16], port: u16) -> bool {
    ports.is_empty() || ports.contains(&port)
}

/// Whatever the mode: audit is about what policy says.
fn revoked() -> Decision {
    Decision {
        verdict: Verdict::Deny,
        rule: RULE_REVOKED.into(),
    }
}

fn default(unit: &Unit, caller: &Caller<'_>) -> Decision {
    let rule = match caller {
        Caller::Identity(_) => &unit.rule_default,
        Caller::Plaintext { .. } => &unit.rule_plaintext_default,
    };
    refuse(unit, Verdict::Deny, rule)
}

fn refuse(unit: &Unit, verdict: Verdict, rule: &Arc<str>) -> Decision {
    Decision {
        verdict: match unit.mode {
            Mode::Enforce => verdict,
            Mode::Audit => Verdict::AuditDeny,
        },
        rule: rule.clone(),
    }
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
