//! Where one try of a request goes, and whom it concerns.

use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Endpoint, Port, Protocol, Unit};
use hostmesh_proxy_core::error::Fault;

use super::call::Call;
use super::observe::{Account, Entry};
use super::route::To;
use crate::rejudge::Denial;
use crate::stream::DENIED_THERE;
use crate::worker::Worker;

/// Whose counters and journals a try concerns.
pub struct Parties {
    pub caller: Rc<Account>,
    /// Where it is a unit of this host; and the rule that lets the caller in.
    pub callee: Option<(Rc<Account>, Arc<str>)>,
}

impl Parties {
    pub fn ended(&self, worker: &Worker, entry: &Entry<'_>) {
        self.caller.ended(worker, entry);
        self.callee_ended(worker, entry);
    }

    /// Policy has turned against it: told by the side whose policy it is, as it is at the beginning. The caller of a unit
    /// that denies it has the answer to that, or half of another; who is called has the half of a request.
    pub fn denied(&self, worker: &Worker, entry: &Entry<'_>, denial: &Denial) {
        let decision = &denial.decision;
        match &self.callee {
            Some((callee, _)) if denial.about.direction == callee.about.direction => {
                callee.denied(worker, entry, decision);
                let answered = decision.verdict.fault().filter(|_| entry.status == 0);
                let (status, error) = answered.map_or((entry.status, DENIED_THERE), |fault| (fault.status(), ""));
                let flag = answered.map_or("", Fault::word);
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
                self.caller.denied(worker, entry, decision);
                let error = DENIED_THERE;
                self.callee_ended(worker, &Entry { error, ..*entry });
            }
        }
    }

    pub fn callee_ended(&self, worker: &Worker, entry: &Entry<'_>) {
        if let Some((callee, rule)) = &self.callee {
            callee.ended(
                worker,
                &Entry {
                    rule,
                    tries: 1,
                    ..*entry
                },
            );
        }
    }
}

/// Where one try goes.
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
