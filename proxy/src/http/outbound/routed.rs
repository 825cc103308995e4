//! Does what the first fitting route of a service's policy says: answers, holds back, leads elsewhere, changes.

use std::rc::Rc;

use hostmesh_proxy_core::authorize::{Decision, Verdict};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::route::{Choice, Respond, Then, View, choose};

use super::Calling;
use crate::http::call::{Call, Taken, hash_key, pause};
use crate::http::down::Downstream;
use crate::http::observe::Entry;
use crate::http::route::To;
use crate::http::session::Next;

impl Calling {
    /// The unit may not call this: the client is told so. `None`: it may.
    pub(super) async fn refused(&self, down: &mut impl Downstream, call: &Call<'_>) -> Option<Next> {
        let decision = &call.route.decision;
        let fault = decision.verdict.fault()?;
        self.account_of_nobody(&call.route)
            .judged(&self.worker, &call.entry(0, ""), decision);
        Some(down.reply(fault, &fault.to_string()).await)
    }

    /// Takes the route of the called service's policy that fits, if one does. `Some`: that was all. Whoever calls an
    /// endpoint by its address means that one: there are no routes then.
    pub(super) async fn routed(&self, down: &mut impl Downstream, call: &mut Call<'_>) -> Option<Next> {
        let To::Service {
            service, only: None, ..
        } = &call.route.to
        else {
            return None;
        };
        if service.traffic.routes.is_empty() {
            return None;
        }
        let service = service.clone();
        let view = View {
            request: call.arrived.asked,
            query: call.arrived.query,
            source: self.client,
        };
        let taken = match choose(&service.traffic.routes, &view, || self.worker.random()) {
            Choice::Service => return None,
            Choice::BadPath(route) => {
                let decision = Decision::new(Verdict::BadPath, route.rule.clone());
                let entry = Entry {
                    route: &route.name,
                    ..call.entry(0, "")
                };
                let account = self.account_of_nobody(&call.route);
                account.judged(&self.worker, &entry, &decision);
                return Some(down.reply(Fault::BadPath, &Fault::BadPath.to_string()).await);
            }
            Choice::Route(taken) => taken,
        };
        let mut made = Taken {
            route: taken.route.clone(),
            target: None,
            mirrored: false,
        };
        let mut elsewhere = None;
        if let Then::Forward {
            service: to,
            target,
            mirrored,
        } = &taken.then
        {
            made.target.clone_from(target);
            made.mirrored = *mirrored;
            elsewhere = to.filter(|to| ***to != *service.name);
        }
        call.taken = Some(Rc::new(made));
        call.retries = taken.route.retries.or(call.retries);
        call.hedge = taken.route.hedge.or(call.hedge);
        if let Some(timeout) = taken.route.timeout {
            call.deadline = Some(call.arrived.begun + timeout);
        }
        if let Some(delay) = taken.delay {
            call.flag = Some(Flag::Fault);
            pause(delay, call.deadline).await;
            if call.is_late() {
                return Some(self.fail(down, call, Fault::Timeout).await);
            }
        }
        match taken.then {
            Then::Forward { .. } => {}
            Then::Abort(status) => {
                let fields = [("content-type", "text/plain; charset=utf-8")];
                let body = "hostmesh: a fault by policy\n";
                return Some(self.answer(down, call, Flag::Fault, status, &fields, body).await);
            }
            Then::Redirect { status, location } => {
                let fields = [("location", &*location)];
                return Some(self.answer(down, call, Flag::Redirected, status, &fields, "").await);
            }
            Then::Respond(respond) => return Some(self.respond(down, call, respond).await),
        }
        let elsewhere = elsewhere?;
        let Some(route) = call.route.towards(elsewhere) else {
            return Some(self.fail(down, call, Fault::NoRoute).await);
        };
        call.service = route.to.service().cloned();
        call.key = hash_key(call.service.as_deref(), call.arrived, self.client);
        call.route = route;
        self.refused(down, call).await
    }

    async fn fail(&self, down: &mut impl Downstream, call: &Call<'_>, fault: Fault) -> Next {
        self.give_up(down, call, None, fault, &fault.to_string()).await
    }

    async fn respond(&self, down: &mut impl Downstream, call: &Call<'_>, respond: &Respond) -> Next {
        let fields: Vec<_> = respond
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        self.answer(down, call, Flag::Responded, respond.status, &fields, &respond.body)
            .await
    }

    /// Answers as policy says, and tells it.
    async fn answer(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        flag: Flag,
        status: u16,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Next {
        let entry = Entry {
            flag: Some(flag),
            ..call.entry(status, "")
        };
        self.account_of_nobody(&call.route).ended(&self.worker, &entry);
        let fields: Vec<_> = fields
            .iter()
            .copied()
            .chain([("x-hostmesh-error", flag.word())])
            .collect();
        down.answer(status, &fields, body).await
    }
}
