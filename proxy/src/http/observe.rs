//! Counts and records requests: one row of counters, and by the unit's access log one line.

use std::cell::RefCell;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::{Decision, Verdict};
use hostmesh_proxy_core::config::{AccessLog, Endpoint};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::flag::{self, Flag};

use super::down::{Arrived, BrokenBy};
use super::traced::{Attempt, Part};
use crate::events::Event;
use crate::stats::{CodeClass, Gauge, Row};
use crate::stream::DENIED_THERE;
use crate::worker::{About, Worker, micros};

/// Requests of one kind: from whom to whom.
pub struct Account {
    pub about: About,
    row: Arc<Row>,
    /// The same by route, as they are taken.
    routes: RefCell<Vec<Arc<Row>>>,
}

/// One request, as far as it is known.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    pub arrived: Arrived<'a>,
    pub rule: &'a str,
    /// Of the side whose line this is.
    pub part: Part<'a>,
    /// The try that is under way, or was the last.
    pub attempt: Option<Attempt>,
    pub tries: u32,
    /// 0: the client got none.
    pub status: u16,
    /// What went wrong, for a person; empty if nothing did.
    pub error: &'a str,
    /// Where the try goes that is under way, or went that was the last.
    pub endpoint: Option<&'a Endpoint>,
    /// The route that it took; empty if none fitted.
    pub route: &'a str,
    /// What was done to it, in one word (`x-hostmesh-error`'s, where it was answered by a proxy); empty if nothing was.
    pub flag: Option<Flag>,
}

impl<'a> Entry<'a> {
    /// Of a request that has come, by the rule that lets it in.
    pub fn new(arrived: Arrived<'a>, rule: &'a str, part: Part<'a>) -> Self {
        Self {
            arrived,
            rule,
            part,
            attempt: None,
            tries: 1,
            status: 0,
            error: "",
            endpoint: None,
            route: "",
            flag: None,
        }
    }

    /// By the status of gRPC where there is one.
    pub fn class(&self) -> CodeClass {
        match (self.status, self.arrived.progress.grpc_status.get()) {
            (200, Some(grpc)) => CodeClass::of_grpc(grpc),
            (status, _) => CodeClass::of_status(status),
        }
    }

    /// The same, of the unit of this host that is called: it knows of no other tries.
    pub fn of_callee(&self, rule: &'a str) -> Self {
        let callee = |attempt: &Attempt| self.part.callee(attempt);
        Self {
            part: self.attempt.as_ref().map_or(self.part, callee),
            rule,
            tries: 1,
            endpoint: None,
            ..*self
        }
    }

    fn sent(&self) -> u64 {
        self.arrived.progress.sent.get()
    }

    fn received(&self) -> u64 {
        self.arrived.progress.received.get()
    }
}

impl Account {
    pub fn new(worker: &Worker, about: About) -> Self {
        Self {
            row: about.row(worker),
            routes: RefCell::default(),
            about,
        }
    }

    /// The request is over.
    pub fn ended(&self, worker: &Worker, entry: &Entry<'_>) {
        let duration = micros(entry.arrived.begun);
        self.count(worker, entry, duration);
        entry.part.ended(worker, &self.about, entry);
        let is_error = entry.class().is_failure() || !entry.error.is_empty();
        let wanted = match self.about.unit.access_log {
            AccessLog::All => true,
            AccessLog::Errors => is_error,
            AccessLog::None => false,
        };
        worker.shared.events.record(wanted, &self.about.unit.unit, || {
            let kind = if entry.error.is_empty() { "request" } else { "error" };
            let event = self.event(entry, kind, "allow", entry.error.to_owned());
            Event {
                duration_us: duration,
                ..event
            }
        });
    }

    /// A copy is over; what came of it is counted, and troubles nobody.
    pub fn copied(&self, worker: &Worker, entry: &Entry<'_>) {
        match self.about.unit.access_log {
            AccessLog::All => self.ended(worker, entry),
            AccessLog::Errors | AccessLog::None => {
                self.count(worker, entry, micros(entry.arrived.begun));
                entry.part.ended(worker, &self.about, entry);
            }
        }
    }

    fn count(&self, worker: &Worker, entry: &Entry<'_>, duration: u64) {
        let retries = u64::from(entry.tries.saturating_sub(1));
        let (class, span) = (entry.class(), entry.part.span);
        let count = |row: &Row| {
            let counted = row.record(class, duration, entry.sent(), entry.received(), retries);
            if span.is_sampled {
                counted.exemplify(span.trace_id);
            }
            entry.flag.into_iter().for_each(|flag| row.flagged(flag));
        };
        self.with_row(worker, entry.route, count);
    }

    /// Gives the counters of a route, which are asked for once a connection.
    fn with_row(&self, worker: &Worker, route: &str, count: impl FnOnce(&Row)) {
        if route.is_empty() {
            return count(&self.row);
        }
        let mut routes = self.routes.borrow_mut();
        let known = routes.iter().position(|row| row.is_of(route));
        let place = known.unwrap_or_else(|| {
            routes.push(self.about.row_of(worker, route));
            routes.len() - 1
        });
        count(&routes[place]);
    }

    /// A try is over.
    pub fn tried(&self, worker: &Worker, entry: &Entry<'_>) {
        if let Some(attempt) = &entry.attempt {
            entry.part.attempt(attempt).ended(worker, &self.about, entry);
        }
    }

    /// A try failed, and there will be another.
    pub fn retried(&self, worker: &Worker, entry: &Entry<'_>) {
        let wanted = self.about.unit.access_log != AccessLog::None;
        worker.shared.events.record(wanted, &self.about.unit.unit, || {
            let part = entry.attempt.map_or(entry.part, |attempt| entry.part.attempt(&attempt));
            let event = self.event(&Entry { part, ..*entry }, "retry", "allow", entry.error.to_owned());
            Event {
                duration_us: micros(entry.arrived.begun),
                ..event
            }
        });
    }

    /// Policy refused, or a rule in audit would decide otherwise; nothing where neither is.
    pub fn judged(&self, worker: &Worker, entry: &Entry<'_>, decision: &Decision) {
        match decision.would_deny() {
            Some(rule) => self.denied_by(worker, entry, decision, rule),
            None if decision.verdict != Verdict::Allow => self.denied_by(worker, entry, decision, &decision.rule),
            None => {}
        }
        if let Some(rule) = decision.would_allow() {
            worker.stats.denied(rule);
            let event = self.event(entry, "denied", "audit-allow", String::new());
            let rule = rule.to_string();
            worker.shared.events.emit(Event { rule, ..event });
        }
    }

    fn denied_by(&self, worker: &Worker, entry: &Entry<'_>, decision: &Decision, rule: &str) {
        worker.stats.denied(rule);
        let verdict = if decision.verdict.passes() {
            "audit-deny"
        } else {
            "deny"
        };
        // Words only where the line would not say why.
        let message = match decision.verdict.fault() {
            None | Some(Fault::Denied | Fault::Refused) => entry.error.to_owned(),
            Some(why) => {
                let (peer, method, path) = (&self.about.peer, entry.arrived.asked.method, entry.arrived.asked.path);
                format!("{peer} {method} {path}: {why}")
            }
        };
        if let Some(fault) = decision.verdict.fault() {
            self.with_row(worker, entry.route, |row| {
                let duration = micros(entry.arrived.begun);
                row.record(CodeClass::Denied, duration, entry.sent(), entry.received(), 0);
                row.flagged(fault.flag());
            });
            let (rule, flag) = (&*decision.rule, Some(fault.flag()));
            let status = if entry.status == 0 {
                fault.status()
            } else {
                entry.status
            };
            let part = entry.part;
            part.ended(
                worker,
                &self.about,
                &Entry {
                    rule,
                    flag,
                    status,
                    ..*entry
                },
            );
        }
        let event = self.event(entry, "denied", verdict, message);
        // What was passed on already was open: for so long.
        let is_late = !decision.verdict.passes() && entry.sent() > 0;
        worker.shared.events.emit(Event {
            rule: rule.to_owned(),
            flag: flag::word(decision.verdict.fault().map(Fault::flag)),
            duration_us: if is_late { micros(entry.arrived.begun) } else { 0 },
            ..event
        });
    }

    fn event(&self, entry: &Entry<'_>, kind: &'static str, verdict: &'static str, message: String) -> Event {
        Event {
            method: entry.arrived.asked.method.to_owned(),
            path: entry.arrived.asked.path.to_owned(),
            status: entry.status,
            grpc_status: entry.arrived.progress.grpc_status.get(),
            tries: entry.tries,
            bytes_in: entry.sent(),
            bytes_out: entry.received(),
            trace_id: entry.part.span.trace_hex(),
            span_id: entry.part.span.span_hex(),
            route: entry.route.to_owned(),
            flag: flag::word(entry.flag),
            endpoint: entry.endpoint.map(Endpoint::to_string).unwrap_or_default(),
            ..self.about.event(kind, verdict, entry.rule, message)
        }
    }
}

/// Why a response did not arrive whole, for a person.
pub fn broken(worker: &Worker, by: BrokenBy, by_upstream: &'static str) -> &'static str {
    match by {
        BrokenBy::Client => "the client broke off",
        BrokenBy::SlowClient => {
            worker.stats.add(Gauge::SlowClients, 1);
            "the client was too slow: cut off"
        }
        BrokenBy::Upstream => by_upstream,
        BrokenBy::Policy => DENIED_THERE,
    }
}

/// Counts the client if it is one that was not waited for any longer.
pub fn count_slow(worker: &Worker, fault: Fault) {
    if fault == Fault::SlowRequest {
        worker.stats.add(Gauge::SlowClients, 1);
    }
}
