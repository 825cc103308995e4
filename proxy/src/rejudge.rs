//! Judges a connection when it is opened, and again whenever other policies are in force while it lasts.
//!
//! Law: what was asked at the opening is asked again, of the same functions. What is denied ends with a reset and is told
//! as any refusal is; what is allowed notices nothing. A unit that is no longer there lets nobody in or out.

use std::cell::Cell;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::{self, Decision, RULE_UNKNOWN_UNIT, Target, Verdict};
use hostmesh_proxy_core::config::{Config, Unit};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::limit::{self, Slot};
use tokio::time::Instant;

use crate::events::Event;
use crate::http::inbound::Who;
use crate::opening::Told;
use crate::stats::CodeClass;
use crate::tcp::Relayed;
use crate::traces::connection::Opaque;
use crate::worker::{About, Worker, micros};

/// What is asked of one unit's policy.
pub enum Asked {
    /// May the unit call the service, or, where there is none, this address, which it knows by these names?
    Call {
        /// Where it connects to.
        address: IpAddr,
        /// Names by which it had looked the address up.
        hosts: Vec<Arc<str>>,
    },
    /// May this caller come in?
    ComeIn(Who),
}

/// A question, and where the answer is told.
pub struct Question {
    about: About,
    asked: Asked,
    audited: Audited,
    /// Its places among those in flight.
    slots: Vec<Slot>,
}

/// What audit lets pass is told once, each time that it comes to it.
#[derive(Default)]
pub struct Audited(Cell<bool>);

impl Audited {
    /// Takes a decision; does audit let it pass by this one, and not by the one before?
    pub fn begins(&self, decision: &Decision) -> bool {
        let is_audited = decision.would_deny().is_some();
        let was_audited = self.0.replace(is_audited);
        is_audited && !was_audited
    }
}

/// A policy has turned against what it had let pass.
pub struct Denial {
    /// Whose policy, against whom.
    pub about: About,
    /// By which rule.
    pub decision: Decision,
    /// For a person, where no service is called: who may not call which address.
    message: String,
}

/// Decides by a unit's policy in this config; one that is not there denies.
pub fn by_unit(config: &Config, about: &About, judge: impl FnOnce(&Unit) -> Decision) -> Decision {
    config
        .unit_by_name(&about.unit.unit)
        .map_or_else(unknown_unit, |unit| judge(unit))
}

/// Is it too early to tell whether this caller may come in by this port, and would only requests be let in? On a port where
/// the connection tells what it speaks.
pub fn lets_in_requests_only(unit: &Unit, who: &Who, port: u16) -> bool {
    let caller = who.caller();
    !authorize::opaque(unit, &caller, port).verdict.passes() && authorize::connection(unit, &caller, port).is_none()
}

/// Where there is no unit, no policy lets anybody in or out.
pub fn unknown_unit() -> Decision {
    Decision::new(Verdict::Deny, RULE_UNKNOWN_UNIT)
}

/// Waits until other policies than those judged by are in force, and `judge` denies by them.
pub async fn turned(worker: &Worker, mut judged: u64, mut judge: impl FnMut(&Config) -> Option<Denial>) -> Denial {
    loop {
        let changed = worker.policies_changed.notified();
        if let Some(config) = worker.shared.other_policies(judged) {
            judged = config.policies;
            if let Some(denial) = judge(&config) {
                return denial;
            }
        }
        changed.await;
    }
}

impl Question {
    fn decide(&self, worker: &Worker, config: &Config) -> Decision {
        let about = &self.about;
        by_unit(config, about, |unit| match &self.asked {
            Asked::ComeIn(who) => authorize::opaque(unit, &who.caller(), about.port),
            Asked::Call { address, hosts } => {
                let service = Some(&*about.service).filter(|service| !service.is_empty());
                let mut known = match service {
                    Some(_) => Vec::new(),
                    None => worker.shared.lookups.names(unit, *address),
                };
                known.extend(hosts.iter().cloned());
                let target = Target {
                    port: about.port,
                    service,
                    hosts: &known,
                    address: Some(*address),
                };
                authorize::outbound(unit, &target)
            }
        })
    }

    /// May the requests of a connection that has told nothing be let in, whatever is of bytes?
    fn is_early(&self, config: &Config) -> bool {
        match (&self.asked, config.unit_by_name(&self.about.unit.unit)) {
            (Asked::ComeIn(who), Some(unit)) => lets_in_requests_only(unit, who, self.about.port),
            _ => false,
        }
    }

    /// Takes its places where the unit that is called has limits; why it is denied, if there is no room.
    fn enter(&mut self, worker: &Worker, config: &Config) -> Option<Denial> {
        let (Asked::ComeIn(who), about) = (&self.asked, &self.about) else {
            return None;
        };
        let unit = config.unit_by_name(&about.unit.unit)?;
        match limit::take(unit, &who.caller(), about.port, None, || worker.shared.now()) {
            Ok(slots) => {
                self.slots = slots;
                None
            }
            Err(decision) if decision.verdict.passes() => {
                about.audited(worker, &decision);
                None
            }
            Err(decision) => Some(Denial::new(about.clone(), decision)),
        }
    }

    /// Why it is denied, if it is. What audit lets pass is told once.
    fn weigh(&self, worker: &Worker, decision: Decision) -> Option<Denial> {
        if self.audited.begins(&decision) {
            self.about.audited(worker, &decision);
        }
        if let Some(rule) = decision.would_allow() {
            self.about.would_be_let_in(worker, rule);
        }
        (!decision.verdict.passes()).then(|| match &self.asked {
            Asked::Call { address, .. } if self.about.service.is_empty() => Denial {
                message: format!(
                    "{} may not call {address} on port {}",
                    self.about.unit.unit, self.about.port
                ),
                ..Denial::new(self.about.clone(), decision)
            },
            _ => Denial::new(self.about.clone(), decision),
        })
    }
}

/// A connection whose bytes are carried unread, with all that was asked for it.
pub struct Opened {
    worker: Rc<Worker>,
    /// When the connection was accepted.
    pub begun: Instant,
    /// Of the config by which it was opened.
    policies: u64,
    questions: Vec<Question>,
    /// It has told that it brings no requests. Until then audit tells nothing of it, and no limit counts it.
    is_told: bool,
    /// Its place in its trace.
    pub trace: Option<Opaque>,
}

impl Opened {
    /// Nothing was asked yet.
    pub fn new(worker: &Rc<Worker>, config: &Config, begun: Instant) -> Self {
        Self {
            worker: worker.clone(),
            begun,
            policies: config.policies,
            questions: Vec::new(),
            is_told: true,
            trace: None,
        }
    }

    /// It may turn out to bring requests, which are judged and counted by themselves: what is asked is whether it may come so
    /// far.
    pub fn wait_until_told(&mut self) {
        self.is_told = false;
    }

    /// It brings none: audit tells of it, and limits count it, as of any connection. `false`: refused, counted and recorded.
    pub fn told(&mut self, config: &Config, told: &Told) -> bool {
        if std::mem::replace(&mut self.is_told, true) {
            return true;
        }
        let mut questions = std::mem::take(&mut self.questions);
        let refused = questions.iter_mut().find_map(|question| {
            if matches!(question.asked, Asked::ComeIn(_)) {
                (question.about.protocol, question.about.sni) = (told.protocol().as_str(), told.sni());
            }
            let decision = question.decide(&self.worker, config);
            self.weigh(question, config, decision)
        });
        self.questions = questions;
        refused.map(|denial| denial.refuse(&self.worker)).is_none()
    }

    /// Why it may not come so far, if it may not; takes its places, if it has told what it is.
    fn weigh(&self, question: &mut Question, config: &Config, decision: Decision) -> Option<Denial> {
        if !self.is_told && decision.verdict.passes() {
            return None;
        }
        let denial = question.weigh(&self.worker, decision);
        denial.or_else(|| question.enter(&self.worker, config))
    }

    /// The rule that lets it pass by this config, which is asked again from now on; `None`: refused, counted and recorded.
    pub fn ask(&mut self, config: &Config, about: About, asked: Asked) -> Option<Arc<str>> {
        let mut question = Question {
            about,
            asked,
            audited: Audited::default(),
            slots: Vec::new(),
        };
        let decision = question.decide(&self.worker, config);
        let rule = decision.rule.clone();
        if let Some(denial) = self.weigh(&mut question, config, decision) {
            denial.refuse(&self.worker);
            return None;
        }
        self.questions.push(question);
        Some(rule)
    }

    /// What was asked last is of no account any more: the connection goes elsewhere.
    pub fn withdraw(&mut self) {
        self.questions.pop();
    }

    /// Waits until one of the policies denies it.
    pub async fn denied(&self) -> Denial {
        turned(&self.worker, self.policies, |config| {
            self.questions.iter().find_map(|question| {
                let decision = question.decide(&self.worker, config);
                if !self.is_told && (decision.verdict.passes() || question.is_early(config)) {
                    return None;
                }
                question.weigh(&self.worker, decision)
            })
        })
        .await
    }

    /// Does this, which opens the connection, unless it is denied first; that is told then.
    pub async fn unless_denied<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            denial = self.denied() => {
                denial.refuse(&self.worker);
                None
            }
            done = work => Some(done),
        }
    }

    /// It came to nothing: counts and records it.
    pub fn failed(&self, about: &About, flag: Flag, message: String) {
        if let Some(trace) = &self.trace {
            trace.failed(&self.worker, about, self.begun, message.clone());
        }
        about.failed(&self.worker, self.begun, Some(flag), message);
    }

    /// It is over: counts and records it, in the journal of `about` and in that of who denied it.
    pub fn ended(&self, about: &About, rule: &str, relayed: &Relayed) {
        if let Some(trace) = &self.trace {
            trace.ended(&self.worker, about, self.begun, relayed);
        }
        let Some(denial) = &relayed.denied else {
            return about.relayed(&self.worker, self.begun, rule, relayed);
        };
        denial.tell(&self.worker, self.begun, relayed.sent, relayed.received);
        if denial.about.direction != about.direction {
            about.relayed(&self.worker, self.begun, rule, relayed);
        }
    }
}

impl Denial {
    /// By this rule of the unit that `about` names.
    pub fn new(about: About, decision: Decision) -> Self {
        Self {
            about,
            decision,
            message: String::new(),
        }
    }

    /// Counts and records that a connection was not opened.
    fn refuse(self, worker: &Worker) {
        let fault = self.decision.verdict.fault();
        let message = match fault {
            Some(why @ Fault::Limited(_)) => format!("{}: {why}", self.about.peer),
            _ => self.message,
        };
        let flag = fault.map_or(Flag::Denied, Fault::flag);
        self.about.denied(worker, &self.decision.rule, flag, message);
    }

    /// Counts and records that an open connection was ended.
    pub fn tell(&self, worker: &Worker, begun: Instant, sent: u64, received: u64) {
        let (about, rule) = (&self.about, &self.decision.rule);
        worker.stats.denied(rule);
        let row = about.row(worker);
        row.record(CodeClass::Denied, micros(begun), sent, received, 0);
        row.flagged(Flag::Denied);
        let event = about.event("denied", "deny", rule, self.message.clone());
        worker.shared.events.emit(Event {
            duration_us: micros(begun),
            bytes_in: sent,
            bytes_out: received,
            flag: Flag::Denied.word(),
            ..event
        });
    }
}

#[cfg(test)]
#[path = "rejudge_tests.rs"]
mod tests;
