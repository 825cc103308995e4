//! Who may call whom: the twin of `hostmesh/policy/authorize.py`, which is the specification.
//!
//! Both are held to `tests/vectors/authorize.json`. Deny wins over allow, silence is a refusal, `mode = "audit"` turns a
//! refusal into a record. A connection is judged once where no rule in play asks about the request. A rule in audit decides
//! nothing; what it would have changed is told beside the verdict.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::claims::Claims;
use crate::config::{Gatekeeper, InboundRule, Mode, OutboundTarget, Unit};
use crate::error::Fault;
use crate::token::Doubt;

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
    /// A token would have opened, and there is none: 401.
    NoToken,
    /// The token is not believed, and nothing else opens: 401.
    BadToken(Doubt),
    /// It may, but not now: 429. After so many seconds there may be room.
    Limited(u32),
    /// The gatekeeper said no: 403, or what it says.
    Refused,
    /// The gatekeeper gave none: 503.
    NoVerdict,
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
            Self::NoToken => Some(Fault::NoToken),
            Self::BadToken(doubt) => Some(Fault::BadToken(doubt)),
            Self::Limited(seconds) => Some(Fault::Limited(seconds)),
            Self::Refused => Some(Fault::Refused),
            Self::NoVerdict => Some(Fault::NoVerdict),
        }
    }
}

/// A verdict and the rule that decided (docs/architecture.md, "Rule names").
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: Arc<str>,
    /// The first rule in audit that would have decided otherwise, were it in force.
    pub audited: Option<Arc<str>>,
}

impl Decision {
    /// By this rule.
    pub fn new(verdict: Verdict, rule: impl Into<Arc<str>>) -> Self {
        Self {
            verdict,
            rule: rule.into(),
            audited: None,
        }
    }

    /// The rule that would deny what goes on: by audit mode, or by a rule in audit.
    pub fn would_deny(&self) -> Option<&Arc<str>> {
        match self.verdict {
            Verdict::AuditDeny => Some(&self.rule),
            Verdict::Allow => self.audited.as_ref(),
            _ => None,
        }
    }

    /// The rule in audit that would let in what is denied.
    pub fn would_allow(&self) -> Option<&Arc<str>> {
        self.audited.as_ref().filter(|_| self.verdict != Verdict::Allow)
    }
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

    /// Calls `see` with name and value of every field line; names may have capitals.
    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8]));
}

/// What rules may ask of a request. `path` is the target's path as it came, without the query.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a dyn Headers,
    pub token: Token<'a>,
}

/// The token of a request.
#[derive(Debug, Clone, Copy)]
pub enum Token<'a> {
    /// It brings none, or none is looked for.
    None,
    /// It brings one that is not believed.
    Bad(Doubt),
    /// The claims of one that is.
    Good(&'a Claims),
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
    judge(unit, caller, port, None, true).unwrap_or_else(|| refuse(unit, Verdict::Deny, default(unit, caller)))
}

/// Judges one request on an HTTP port of `unit`.
pub fn request(unit: &Unit, caller: &Caller<'_>, port: u16, request: &Request<'_>) -> Decision {
    // Only the lack of a request leaves a question open.
    judge(unit, caller, port, Some(request), false)
        .unwrap_or_else(|| refuse(unit, Verdict::Deny, default(unit, caller)))
}

/// Is this rule about what was let in? It fits as a rule that denies does, so that nothing slips by it, but for bytes that are
/// carried unread: those are no requests. A path that has no normal form counts as one that fits.
pub fn fits(rule: &InboundRule, caller: &Caller<'_>, port: u16, request: Option<&Request<'_>>) -> bool {
    if !fits_caller(&rule.callers, caller) || !fits_port(&rule.ports, port) {
        return false;
    }
    let asked = Asked {
        request,
        is_http: true,
        normal: OnceCell::new(),
    };
    matches!(asked.fit_deny(&rule.request), Fit::Yes | Fit::BadPath)
}

/// Judges what `unit` wants to call. Not softened by audit, which is about callers.
pub fn outbound(unit: &Unit, target: &Target<'_>) -> Decision {
    let allow = |rule: &str| Decision::new(Verdict::Allow, rule);
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
            return Decision::new(Verdict::Allow, rule.rule.clone());
        }
    }
    Decision::new(Verdict::Deny, unit.rule_outbound_default.clone())
}

/// What comes of a gatekeeper's no ([`Verdict::Refused`]), or of its silence ([`Verdict::NoVerdict`]).
pub fn external(unit: &Unit, gatekeeper: &Gatekeeper, verdict: Verdict) -> Decision {
    refuse(unit, verdict, &gatekeeper.rule)
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
        // Whatever the mode: nobody knows what is there.
        return Some(Decision::new(Verdict::Deny, unit.rule_default.clone()));
    };
    let asked = Asked {
        request,
        is_http: declared.protocol.can_be_read() && !is_opaque,
        normal: OnceCell::new(),
    };
    if matches!(caller, Caller::Identity(id) if **id == *unit.spiffe_id) {
        return Some(Decision::new(Verdict::Allow, RULE_SELF));
    }
    let mut audited = None;
    for rule in &unit.deny {
        if !(fits_caller(&rule.callers, caller) && fits_port(&rule.ports, port)) {
            continue;
        }
        let verdict = match asked.fit_deny(&rule.request) {
            Fit::AsksRequest => return None,
            Fit::Yes => Verdict::Deny,
            Fit::BadPath => Verdict::BadPath,
            Fit::No | Fit::NeedsToken | Fit::BadToken(_) => continue,
        };
        if !rule.audit {
            return Some(refuse(unit, verdict, &rule.rule));
        }
        audited.get_or_insert(&rule.rule);
    }
    let decided = judge_allow(unit, caller, port, &asked)?;
    Some(match decided.verdict {
        Verdict::Allow => Decision {
            audited: audited.cloned(),
            ..decided
        },
        _ => decided,
    })
}

/// The rules that fit but for something, the first of each kind.
#[derive(Default)]
struct Nearly<'a> {
    bad_path: Option<&'a Arc<str>>,
    bad_token: Option<(Doubt, &'a Arc<str>)>,
    needs_token: Option<&'a Arc<str>>,
    audited: Option<&'a Arc<str>>,
}

impl<'a> Nearly<'a> {
    /// `Some`: it is decided, and with `Some(None)` that the connection alone cannot tell.
    fn see(&mut self, rule: &'a Arc<str>, audit: bool, fit: Fit) -> Option<Option<Decision>> {
        match fit {
            Fit::AsksRequest => return Some(None),
            Fit::Yes if audit => self.audited = self.audited.or(Some(rule)),
            Fit::Yes => return Some(Some(Decision::new(Verdict::Allow, rule.clone()))),
            Fit::No => {}
            _ if audit => {}
            Fit::BadPath => self.bad_path = self.bad_path.or(Some(rule)),
            Fit::BadToken(doubt) => self.bad_token = self.bad_token.or(Some((doubt, rule))),
            Fit::NeedsToken => self.needs_token = self.needs_token.or(Some(rule)),
        }
        None
    }

    /// Nothing let in.
    fn refusal(&self, unit: &Unit, caller: &Caller<'_>) -> Decision {
        let (verdict, rule) = match (self.bad_path, self.bad_token, self.needs_token) {
            (Some(rule), _, _) => (Verdict::BadPath, rule),
            (None, Some((doubt, rule)), _) => (Verdict::BadToken(doubt), rule),
            (None, None, Some(rule)) => (Verdict::NoToken, rule),
            (None, None, None) => (Verdict::Deny, default(unit, caller)),
        };
        Decision {
            audited: self.audited.cloned(),
            ..refuse(unit, verdict, rule)
        }
    }
}

fn judge_allow(unit: &Unit, caller: &Caller<'_>, port: u16, asked: &Asked<'_>) -> Option<Decision> {
    let mut nearly = Nearly::default();
    match caller {
        Caller::Identity(_) => {
            for rule in &unit.allow {
                if fits_caller(&rule.callers, caller)
                    && fits_port(&rule.ports, port)
                    && let Some(decided) = nearly.see(&rule.rule, rule.audit, asked.fit_allow(&rule.request))
                {
                    return decided;
                }
            }
        }
        Caller::Plaintext { address, local } => {
            for rule in &unit.plaintext {
                if fits_source(&rule.sources, *address, *local)
                    && fits_port(&rule.ports, port)
                    && let Some(decided) = nearly.see(&rule.rule, false, asked.fit_allow(&rule.request))
                {
                    return decided;
                }
            }
        }
    }
    Some(nearly.refusal(unit, caller))
}

/// Whatever the mode: audit is about what policy says.
fn revoked() -> Decision {
    Decision::new(Verdict::Deny, RULE_REVOKED)
}

/// By the rule for whom none lets in.
fn default<'a>(unit: &'a Unit, caller: &Caller<'_>) -> &'a Arc<str> {
    match caller {
        Caller::Identity(_) => &unit.rule_default,
        Caller::Plaintext { .. } => &unit.rule_plaintext_default,
    }
}

fn refuse(unit: &Unit, verdict: Verdict, rule: &Arc<str>) -> Decision {
    let verdict = match unit.mode {
        Mode::Enforce => verdict,
        Mode::Audit => Verdict::AuditDeny,
    };
    Decision::new(verdict, rule.clone())
}

#[path = "authorize_fit.rs"]
mod fit;

use fit::{Asked, Fit, fits_caller, fits_port, fits_source};

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
