//! Where one try of a request goes, and whom it concerns.

use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Endpoint, Port, Protocol, Unit};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::RequestEdits;
use hostmesh_proxy_core::limit::Slot;
use hostmesh_proxy_core::trace::Outgoing;

use super::call::Call;
use super::ext_authz::Permit;
use super::observe::{Account, Entry};
use super::route::To;
use super::token::Brought;
use crate::rejudge::Denial;
use crate::stream::DENIED_THERE;
use crate::worker::Worker;

/// What a unit of this host is told with a request: who calls, and of the token that was `brought` what its policy says.
pub fn edits_for<'a>(callee: &'a Unit, brought: &'a Brought, caller: &'a Unit) -> RequestEdits<'a> {
    RequestEdits {
        peer: Some(&caller.spiffe_id),
        withheld: callee.withheld(),
        stated: brought.headers(),
        ..RequestEdits::default()
    }
}

/// Whose counters and journals a try concerns.
pub struct Parties {
    pub caller: Rc<Account>,
    /// Where it is a unit of this host.
    pub callee: Option<Rc<Callee>>,
}

/// A unit of this host that is called.
pub struct Callee {
    pub account: Rc<Account>,
    /// The rule that lets the caller in.
    pub rule: Arc<str>,
    /// The token by which it does.
    pub brought: Brought,
    /// The request's places among those in flight.
    pub slots: Option<Rc<Vec<Slot>>>,
    /// What its gatekeeper says, if it has one.
    pub permit: Option<Rc<Permit>>,
}

impl Callee {
    /// Is it this unit, by the same config?
    pub fn is_of(&self, unit: &Arc<Unit>) -> bool {
        Arc::ptr_eq(&self.account.about.unit, unit)
    }
}

impl Parties {
    /// What is set on a request that goes to a unit of this host; another host's proxy does that itself.
    pub fn edits<'a>(&'a self, trace: Outgoing, caller: &'a Unit) -> RequestEdits<'a> {
        let callee = self.callee.as_ref();
        let edits = callee.map(|callee| edits_for(&callee.account.about.unit, &callee.brought, caller));
        RequestEdits {
            trace: Some(trace),
            ..edits.unwrap_or_default()
        }
    }

    pub fn ended(&self, worker: &Worker, entry: &Entry<'_>) {
        self.caller.tried(worker, entry);
        self.caller.ended(worker, entry);
        self.callee_ended(worker, entry);
    }

    /// Policy has turned against it: told by the side whose policy it is, as it is at the beginning. The caller of a unit
    /// that denies it has the answer to that, or half of another; who is called has the half of a request.
    pub fn denied(&self, worker: &Worker, entry: &Entry<'_>, denial: &Denial) {
        let decision = &denial.decision;
        let tried = Entry {
            error: DENIED_THERE,
            flag: decision.verdict.fault().map(Fault::flag),
            ..*entry
        };
        self.caller.tried(worker, &tried);
        match &self.callee {
            Some(callee) if denial.about.direction == callee.account.about.direction => {
                let rule = &callee.rule;
                callee.account.judged(worker, &entry.of_callee(rule), decision);
                let answered = decision.verdict.fault().filter(|_| entry.status == 0);
                let (status, error) = answered.map_or((entry.status, DENIED_THERE), |fault| (fault.status(), ""));
                let flag = answered.map(Fault::flag);
                self.caller.ended(
                    worker,
                    &Entry {
                        status,
                        error,
                        flag,
                        ..*entry
                    },
                );
            }
            _ => {
                self.caller.judged(worker, entry, decision);
                let error = DENIED_THERE;
                self.callee_ended(worker, &Entry { error, ..*entry });
            }
        }
    }

    pub fn callee_ended(&self, worker: &Worker, entry: &Entry<'_>) {
        if let Some(callee) = &self.callee {
            let flag = entry.flag.or(self.permit().and_then(|permit| permit.flag));
            let entry = Entry { flag, ..*entry };
            callee.account.ended(worker, &entry.of_callee(&callee.rule));
        }
    }

    /// What the gatekeeper of a unit of this host says.
    pub fn permit(&self) -> Option<&Permit> {
        self.callee.as_ref()?.permit.as_deref()
    }
}

/// Where one try goes.
#[derive(Clone)]
pub struct Hop {
    /// The endpoint; `None`: a unit of this host that was called by address.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The unit and its port, where it runs on this host.
    pub local: Option<(Arc<Unit>, Port)>,
    /// The port of the endpoint.
    pub target: u16,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// Unit, host (empty: this one) and port.
pub type Place = (Arc<str>, Arc<str>, u16);

impl Hop {
    /// Where it leads.
    pub fn place(&self) -> Place {
        match (&self.local, &self.endpoint) {
            (None, Some(endpoint)) => (endpoint.unit.clone(), endpoint.host.clone(), self.target),
            (Some((unit, _)), _) => (unit.unit.clone(), "".into(), self.target),
            (None, None) => ("".into(), "".into(), self.target),
        }
    }

    /// Where the next try goes.
    pub fn pick(call: &Call<'_>) -> Result<Self, Fault> {
        match &call.route.to {
            To::Unit { unit, port, .. } => Ok(Self {
                endpoint: None,
                local: Some((unit.clone(), *port)),
                target: port.port,
                protocol: port.protocol,
            }),
            To::Service { service, port, only } => {
                let endpoint = match only {
                    Some(endpoint) => endpoint.clone(),
                    None => call.route.connector.pick(service, &call.tried, call.key)?,
                };
                let local = endpoint
                    .local
                    .as_ref()
                    .and_then(|unit| Some((unit.clone(), *unit.port(port.target)?)));
                Ok(Self {
                    endpoint: Some(endpoint),
                    local,
                    target: port.target,
                    protocol: port.protocol,
                })
            }
        }
    }
}
