//! Asks another endpoint, too, where one is slow to answer: the first response that is no failure is passed on, and what
//! the others do is cancelled.

use std::cell::RefCell;
use std::future::poll_fn;

use hostmesh_proxy_core::authorize::Decision;
use hostmesh_proxy_core::config::Hedge;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::retry::Failure;
use tokio::time::Instant;

use super::Calling;
use super::attempt::{Trial, not_connected};
use super::judge::Refusal;
use super::race::{Candidate, Connected, Leg, Race, Ready, Runner, State};
use crate::breaker::Room;
use crate::http::call::{Call, Tried, flag, timed_out, until};
use crate::http::down::{BrokenBy, Downstream, Stretch};
use crate::http::hop::{Hop, Parties};
use crate::http::observe::{Account, Entry, broken};
use crate::http::session::Next;
use crate::in_flight::InFlight;
use crate::rejudge::Denial;
use crate::tcp::stands_still;
use crate::traces::connection::Opening;

/// What happens while all wait.
enum Happened<'a> {
    Ready(Ready<'a>),
    /// The one that may come has no more time.
    Late,
    /// Another endpoint may be asked, too.
    Due,
    Denied(Denial),
    Gone(BrokenBy),
}

impl Calling {
    /// The try that begins.
    pub(super) fn runner<'a>(&'a self, call: &mut Call<'_>, leg: Leg, in_flight: InFlight, fresh: bool) -> Runner<'a> {
        call.tried.extend(leg.hop.endpoint.as_ref().map(|endpoint| endpoint.id));
        let (route, service, to) = (call.route.clone(), call.service.clone(), leg.hop.clone());
        let connecting = async move {
            let opening = Opening::default();
            let made = self
                .connect_with_room(&route, service.as_ref(), &to, fresh, &opening)
                .await;
            let dialed = opening.dialed.into_inner();
            Connected { made, dialed }
        };
        Runner {
            leg,
            in_flight,
            deadline: call.try_deadline(),
            state: State::Connecting(Box::pin(connecting)),
            is_used: false,
            room: Room::default(),
            _paid: None,
        }
    }

    /// The first try and those that are made beside it, to the end of them all: whom the last one concerns, and what came of
    /// it.
    pub(super) async fn hedged<'a>(
        &'a self,
        down: &mut impl Downstream,
        call: &mut Call<'a>,
        policy: Hedge,
        first: Runner<'a>,
    ) -> (Parties, Tried) {
        let mut due = Some(Instant::now() + policy.after);
        let mut race = Race {
            runners: vec![first],
            candidate: None,
        };
        loop {
            let (leg, tried) = match self.happens(down, call, &mut race, due).await {
                Happened::Due => {
                    race.candidate = self.another(call, policy, &race.runners);
                    due = None;
                    continue;
                }
                Happened::Ready(Ready::Runner(index)) => {
                    let mut runner = race.runners.swap_remove(index);
                    match self.step(down, call, &mut runner, &mut race, due).await {
                        Some(tried) => (runner.leg, tried),
                        None => {
                            race.runners.push(runner);
                            continue;
                        }
                    }
                }
                Happened::Ready(Ready::Candidate(candidate, Err(refusal))) if race.is_empty() => {
                    candidate.leg.leads(call);
                    let next = self.refuse(down, call, refusal).await;
                    (candidate.leg, Tried::Over(next))
                }
                Happened::Ready(Ready::Candidate(candidate, judged)) => {
                    race.runners.extend(self.admitted(call, *candidate, judged));
                    due = call.may_hedge().map(|policy| Instant::now() + policy.after);
                    continue;
                }
                Happened::Late => match race.candidate.take() {
                    Some(candidate) => {
                        candidate.leg.leads(call);
                        (candidate.leg, timed_out())
                    }
                    None => continue,
                },
                Happened::Denied(denial) => {
                    let leg = race.leave(race.whose(&denial));
                    leg.leads(call);
                    leg.parties.denied(&self.worker, &call.entry(0, ""), &denial);
                    let next = down.refuse(&denial.decision, 0).await;
                    (leg, Tried::Over(next))
                }
                Happened::Gone(by) => {
                    let leg = race.leave(0);
                    leg.leads(call);
                    let error = broken(&self.worker, by, "");
                    leg.parties.ended(&self.worker, &call.entry(0, error));
                    (leg, Tried::Over(Next::Abort))
                }
            };
            let failure = match &tried {
                Tried::Over(_) => {
                    self.overtake(call, &mut race);
                    return (leg.parties, tried);
                }
                _ if race.is_empty() => return (leg.parties, tried),
                Tried::Failed { failure, .. } | Tried::Again(failure) => *failure,
                Tried::Stale => Failure::Reset,
            };
            self.lost(call, &leg, "failed while another endpoint was asked", flag(failure));
        }
    }

    async fn happens<'a>(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        race: &mut Race<'a>,
        due: Option<Instant>,
    ) -> Happened<'a> {
        let callees = race
            .runners
            .iter()
            .filter_map(|runner| runner.leg.parties.callee.clone());
        let callees: Vec<_> = callees.collect();
        let tell = |callee: &Account, decision: &Decision| {
            callee.judged(&self.worker, &call.entry(0, "").of_callee(&decision.rule), decision);
        };
        let denied = self.turned(
            &call.route,
            call.taken.as_deref(),
            call.arrived.asked,
            callees.iter().map(|callee| &**callee),
            call.audited,
            tell,
        );
        let progress = call.arrived.progress;
        let late = race.deadline();
        let due = due.filter(|_| down.is_whole());
        tokio::select! {
            biased;
            denial = denied => return Happened::Denied(denial),
            ready = poll_fn(|cx| race.poll_ready(cx)) => return Happened::Ready(ready),
            () = until(late) => {}
            () = stands_still(call.idle_timeout(), || progress.sent.get() + progress.received.get()) => race.end_now(),
            () = until(due), if due.is_some() => return Happened::Due,
            by = down.gone() => return Happened::Gone(by),
        }
        let late = race.late().map(|index| Happened::Ready(Ready::Runner(index)));
        late.unwrap_or(Happened::Late)
    }

    /// One that has something to do does it. `None`: it waits again.
    async fn step(
        &self,
        down: &mut impl Downstream,
        call: &mut Call<'_>,
        runner: &mut Runner<'_>,
        race: &mut Race<'_>,
        due: Option<Instant>,
    ) -> Option<Tried> {
        runner.leg.leads(call);
        let (up, stretch) = match std::mem::replace(&mut runner.state, State::Late) {
            State::Late => {
                runner.in_flight.failed();
                return Some(timed_out());
            }
            State::Connected(Connected { made, dialed }) => {
                if let Some(steps) = dialed {
                    call.part().dialed(&self.worker, &call.route.connector.unit, &steps);
                }
                let (up, is_used, room) = match made {
                    Ok(made) => made,
                    Err(error) => return Some(not_connected(&runner.in_flight, &error)),
                };
                (runner.is_used, runner.room) = (is_used, room);
                let until = if race.is_empty() { due } else { Some(Instant::now()) };
                (up, until.map_or(Stretch::Whole, Stretch::Request))
            }
            State::Heard(up) => (up, Stretch::Response),
            waiting => {
                runner.state = waiting;
                return None;
            }
        };
        let others = RefCell::new(race);
        let again = |failure: Option<Failure>| match failure {
            None => {
                self.overtake(call, &mut others.borrow_mut());
                None
            }
            // Who is still asked may do better.
            failure if !others.borrow().is_empty() => failure,
            failure => failure.filter(|failure| call.may_retry(&self.worker, *failure)),
        };
        let trial = Trial {
            hop: &runner.leg.hop,
            parties: &runner.leg.parties,
            in_flight: &runner.in_flight,
            is_used: runner.is_used,
            deadline: runner.deadline,
            stretch,
        };
        match self.exchange(down, call, &trial, up, again).await {
            Ok(tried) => Some(tried),
            Err(up) => {
                runner.state = State::Asked(up);
                None
            }
        }
    }

    /// A try beside those that run, where there is an endpoint that was not asked and it is paid for. Whom it calls, and
    /// the gatekeeper, are asked while the others go on: with a copy of what is known of the request now.
    fn another<'a>(&'a self, call: &mut Call<'a>, policy: Hedge, runners: &[Runner<'a>]) -> Option<Candidate<'a>> {
        let asked = |hop: &Hop| {
            hop.endpoint
                .as_ref()
                .is_none_or(|endpoint| call.tried.contains(&endpoint.id))
        };
        let hop = Hop::pick(call).ok().filter(|hop| !asked(hop))?;
        let slow = &runners.first()?.leg;
        let paid = call.pay(&self.worker)?;
        slow.leads(call);
        let message = format!("no response after {:?}: another endpoint is asked, too", policy.after);
        slow.parties.caller.retried(&self.worker, &call.entry(0, &message));
        call.tries += 1;
        call.flag = Some(Flag::Hedged);
        let parties = Parties {
            caller: self.caller(&call.route, &hop),
            callee: None,
        };
        let leg = Leg {
            hop,
            parties,
            attempt: Some(call.traced.attempt(&self.worker, call.arrived.begun)),
        };
        leg.leads(call);
        let (known, to) = (call.copy(), leg.hop.clone());
        Some(Candidate {
            leg,
            deadline: call.deadline,
            judged: Box::pin(async move { self.parties(&known, &to, false).await }),
            paid,
        })
    }

    /// The candidate runs, if it may. One that the called unit's policy refuses has failed.
    fn admitted<'a>(
        &'a self,
        call: &mut Call<'_>,
        candidate: Candidate<'a>,
        judged: Result<Parties, Refusal>,
    ) -> Option<Runner<'a>> {
        let Candidate { leg, paid, .. } = candidate;
        leg.leads(call);
        let parties = match judged {
            Ok(parties) => parties,
            Err(Refusal { caller, fault, .. }) => {
                let entry = Entry {
                    flag: Some(fault.flag()),
                    ..call.entry(fault.status(), "refused while another endpoint was asked")
                };
                caller.tried(&self.worker, &entry);
                call.tried.extend(leg.hop.endpoint.as_ref().map(|endpoint| endpoint.id));
                return None;
            }
        };
        let in_flight = InFlight::begin(&call.route.connector, call.service.as_ref(), leg.hop.endpoint.as_ref());
        let leg = Leg { parties, ..leg };
        Some(Runner {
            _paid: Some(paid),
            ..self.runner(call, leg, in_flight, false)
        })
    }

    /// Another one has the answer. What is asked about one that has not begun is withdrawn.
    fn overtake(&self, call: &Call<'_>, race: &mut Race<'_>) {
        let lost = |leg: &Leg| self.lost(call, leg, "ended: another endpoint answered first", Some(Flag::Hedged));
        for runner in race.runners.drain(..) {
            runner.in_flight.overtaken();
            lost(&runner.leg);
            runner.state.abort();
        }
        if let Some(candidate) = race.candidate.take() {
            lost(&candidate.leg);
        }
    }

    /// One of several is over, and is not what the request comes to.
    fn lost(&self, call: &Call<'_>, leg: &Leg, message: &str, flag: Option<Flag>) {
        let entry = Entry {
            attempt: leg.attempt,
            endpoint: leg.hop.endpoint.as_deref(),
            flag,
            ..call.entry(0, message)
        };
        leg.parties.caller.tried(&self.worker, &entry);
        leg.parties.callee_ended(&self.worker, &entry);
    }
}
