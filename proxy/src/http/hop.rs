//! Where one try of a request goes, and whom it concerns.

use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Endpoint, Port, Unit};

use super::observe::{Account, Entry};
use crate::rejudge::Denial;
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

    /// Policy has turned against it: told by the side whose policy it is, as it is at the beginning.
    pub fn denied(&self, worker: &Worker, entry: &Entry<'_>, denial: &Denial) {
        match &self.callee {
            Some((callee, _)) if denial.about.direction == callee.about.direction => {
                callee.denied(worker, entry, &denial.decision);
                self.caller.ended(worker, entry);
            }
            _ => self.caller.denied(worker, entry, &denial.decision),
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
}
