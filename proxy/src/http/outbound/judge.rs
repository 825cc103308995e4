//! Judges a request by the policies of this host: when it comes, and again while it is under way.

use std::rc::Rc;

use hostmesh_proxy_core::authorize::{self, Caller, Decision, Request, Token};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::fields::as_sent;
use hostmesh_proxy_core::limit;

use super::Calling;
use crate::http::call::{Call, Taken};
use crate::http::down::{Arrived, Downstream};
use crate::http::ext_authz::{Question, Refused};
use crate::http::hop::{Callee, Hop, Parties};
use crate::http::observe::{Account, Entry};
use crate::http::route::Route;
use crate::http::session::Next;
use crate::http::token;
use crate::rejudge::{self, Audited, Denial};

/// A unit of this host lets a try not in; its own journal says so.
pub(super) struct Refusal {
    pub caller: Rc<Account>,
    pub fault: Fault,
    /// Its gatekeeper does.
    pub by: Option<Box<Refused>>,
}

impl Calling {
    /// Who is concerned; judges by the called unit's own policy, where it is a unit of this host. `again`: the try before
    /// came to nothing, and does not count.
    pub(super) async fn parties(&self, call: &Call<'_>, hop: &Hop, again: bool) -> Result<Parties, Refusal> {
        let caller = self.caller(&call.route, hop);
        let Some((unit, port)) = &hop.local else {
            return Ok(Parties { caller, callee: None });
        };
        let id = call.route.connector.unit.spiffe_id.clone();
        let account = self.account_of_callee(unit, port.port, &caller, &id);
        let changes = call.taken.as_ref().and_then(|taken| taken.changes());
        let asked = call.arrived.asked;
        let judge = |token: Token<'_>| {
            as_sent(Request { token, ..asked }, changes.as_ref(), |asked| {
                authorize::request(unit, &Caller::Identity(&id), port.port, asked)
            })
        };
        let found = as_sent(asked, changes.as_ref(), |asked| token::find(unit, asked.headers));
        let brought = token::read(&self.worker, &account.about, found, |token| {
            !judge(token).verdict.passes()
        });
        let brought = brought.await;
        let decision = judge(brought.token());
        call.audited.begins(&decision);
        let tell = |decision: &Decision| {
            account.judged(&self.worker, &call.entry(0, "").of_callee(&decision.rule), decision);
            decision.verdict.fault()
        };
        let held = call.callee.as_ref().filter(|callee| again && callee.is_of(unit));
        let enter = || match held {
            Some(callee) => Ok(callee.slots.clone()),
            None => as_sent(asked, changes.as_ref(), |asked| {
                let now = || self.worker.shared.now();
                limit::take(unit, &Caller::Identity(&id), port.port, Some(asked), now)
                    .map(|slots| (!slots.is_empty()).then(|| Rc::new(slots)))
            }),
        };
        let entered = match tell(&decision) {
            Some(fault) => Err(fault),
            None => enter().or_else(|over| tell(&over).map_or_else(|| Ok(None), Err)),
        };
        let slots = match entered {
            Ok(slots) => slots,
            Err(fault) => {
                let by = None;
                return Err(Refusal { caller, fault, by });
            }
        };
        let question = || {
            as_sent(asked, changes.as_ref(), |asked| {
                let arrived = Arrived {
                    asked: *asked,
                    ..call.arrived
                };
                Question::about(&account, Caller::Identity(&id), arrived, &brought, || {
                    call.outgoing(true)
                })
            })
        };
        let permit = match held {
            Some(callee) => callee.permit.clone(),
            None => match question() {
                None => None,
                // Boxed: few units have a gatekeeper.
                Some(question) => match Box::pin(question.ask(&self.worker, &call.entry(0, "").of_callee(""))).await {
                    Ok(permit) => Some(Rc::new(permit)),
                    Err(refused) => {
                        let fault = refused.fault();
                        let by = Some(Box::new(refused));
                        return Err(Refusal { caller, fault, by });
                    }
                },
            },
        };
        let callee = Callee {
            account,
            rule: decision.rule,
            brought,
            slots,
            permit,
        };
        Ok(Parties {
            caller,
            callee: Some(Rc::new(callee)),
        })
    }

    /// The refusal is what the request comes to.
    pub(super) async fn refuse(&self, down: &mut impl Downstream, call: &Call<'_>, refusal: Refusal) -> Next {
        let Refusal { caller, fault, by } = refusal;
        let entry = Entry {
            flag: Some(fault.flag()),
            ..call.entry(by.as_ref().map_or(fault.status(), |refused| refused.status()), "")
        };
        caller.tried(&self.worker, &entry);
        caller.ended(&self.worker, &entry);
        match by {
            Some(refused) => refused.answer(down).await,
            None => down.reply(fault, &fault.to_string()).await,
        }
    }

    /// Waits until the unit may not call the service any more, or its request is denied by the unit of this host that is
    /// called. `tell`: audit would deny it from now on.
    pub(super) async fn turned(
        &self,
        route: &Route,
        taken: Option<&Taken>,
        asked: Request<'_>,
        callees: impl Iterator<Item = &Callee> + Clone,
        audited: &Audited,
        tell: impl Fn(&Account, &Decision),
    ) -> Denial {
        let connector = &route.connector;
        let changes = taken.and_then(Taken::changes);
        rejudge::turned(&self.worker, connector.config.policies, |config| {
            for route in route.via.as_deref().into_iter().chain([route]) {
                let about = self.about(route, "".into());
                let decision = rejudge::by_unit(config, &about, |unit| route.to.judge(unit, self.called.ip()));
                if !decision.verdict.passes() {
                    return Some(Denial::new(about, decision));
                }
            }
            callees.clone().find_map(|callee| {
                let about = &callee.account.about;
                let caller = Caller::Identity(&about.peer);
                let token = callee.brought.token();
                let decision = rejudge::by_unit(config, about, |unit| {
                    as_sent(Request { token, ..asked }, changes.as_ref(), |asked| {
                        authorize::request(unit, &caller, about.port, asked)
                    })
                });
                if audited.begins(&decision) {
                    tell(&callee.account, &decision);
                }
                (!decision.verdict.passes()).then(|| Denial::new(about.clone(), decision))
            })
        })
        .await
    }
}
