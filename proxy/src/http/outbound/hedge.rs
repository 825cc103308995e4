//! Asks another endpoint, too, where one is slow to answer: the first response that is no failure is passed on, and what
//! the others do is cancelled.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use hostmesh_proxy_core::authorize::Decision;
use hostmesh_proxy_core::config::Hedge;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::retry::Failure;
use tokio::time::Instant;

use super::Calling;
use super::attempt::{Trial, not_connected};
use super::judge::Refusal;
use crate::breaker::Room;
use crate::connect::ConnectError;
use crate::http::call::{Call, Paid, Tried, flag, timed_out, until};
use crate::http::down::{BrokenBy, Downstream, Stretch, Up};
use crate::http::hop::{Callee, Hop, Parties};
use crate::http::observe::{Account, Entry, broken};
use crate::http::session::Next;
use crate::http::traced::Attempt;
use crate::in_flight::InFlight;
use crate::rejudge::Denial;
use crate::tcp::stands_still;
use crate::traces::connection::{Opening, Steps};

/// One try of those that are under way.
pub(super) struct Runner<'a> {
    hop: Hop,
    parties: Parties,
    in_flight: InFlight,
    attempt: Option<Attempt>,
    /// When it must have a response's head.
    deadline: Option<Instant>,
    state: State<'a>,
    is_used: bool,
    room: Room,
    _paid: Option<Paid>,
}

enum State<'a> {
    Connecting(Pin<Box<dyn Future<Output = Connected> + 'a>>),
    Connected(Connected),
    /// The request has gone out.
    Asked(Up),
    /// The first of the response, or its end, has come.
    Heard(Up),
    /// It has no more time.
    Late,
}

struct Connected {
    made: Result<(Up, bool, Room), ConnectError>,
    dialed: Option<Steps>,
}

/// What happens while all wait.
enum Happened {
    /// This one goes on.
    Next(usize),
    /// Another endpoint may be asked, too.
    Due,
    Denied(Denial),
    Gone(BrokenBy),
}

impl Runner<'_> {
    /// Waits until there is something to do for it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Connecting(connecting) => {
                let Poll::Ready(connected) = connecting.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                self.state = State::Connected(connected);
            }
            State::Asked(up) => {
                if pin!(up.heard()).poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if let State::Asked(up) = std::mem::replace(&mut self.state, State::Late) {
                    self.state = State::Heard(up);
                }
            }
            State::Connected(_) | State::Heard(_) | State::Late => {}
        }
        Poll::Ready(())
    }

    /// The request goes on by this one.
    fn leads(&self, call: &mut Call<'_>) {
        call.attempt = self.attempt;
        call.endpoint.clone_from(&self.hop.endpoint);
        call.callee.clone_from(&self.parties.callee);
    }

    fn become_late(&mut self) {
        std::mem::replace(&mut self.state, State::Late).abort();
    }
}

impl State<'_> {
    fn abort(self) {
        if let Self::Asked(up) | Self::Heard(up) | Self::Connected(Connected { made: Ok((up, ..)), .. }) = self {
            up.abort();
        }
    }
}

impl Calling {
    /// The try that begins.
    pub(super) fn runner<'a>(
        &'a self,
        call: &mut Call<'_>,
        hop: Hop,
        parties: Parties,
        in_flight: InFlight,
        fresh: bool,
    ) -> Runner<'a> {
        call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
        let (route, service, to) = (call.route.clone(), call.service.clone(), hop.clone());
        let connecting = async move {
            let opening = Opening::default();
            let made = self
                .connect_with_room(&route, service.as_ref(), &to, fresh, &opening)
                .await;
            let dialed = opening.dialed.into_inner();
            Connected { made, dialed }
        };
        Runner {
            hop,
            parties,
            in_flight,
            attempt: call.attempt,
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
        call: &mut Call<'_>,
        policy: Hedge,
        first: Runner<'a>,
    ) -> (Parties, Tried) {
        let mut due = Some(Instant::now() + policy.after);
        let mut race = vec![first];
        loop {
            let (runner, tried) = match self.happens(down, call, &mut race, due).await {
                Happened::Due => {
                    due = self.another(call, policy, &mut race).await;
                    continue;
                }
                Happened::Next(index) => {
                    let mut runner = race.swap_remove(index);
                    match self.step(down, call, &mut runner, &mut race, due).await {
                        Some(tried) => (runner, tried),
                        None => {
                            race.push(runner);
                            continue;
                        }
                    }
                }
                Happened::Denied(denial) => {
                    let runner = race.swap_remove(whose(&race, &denial));
                    runner.leads(call);
                    runner.parties.denied(&self.worker, &call.entry(0, ""), &denial);
                    let next = down.refuse(&denial.decision, 0).await;
                    (runner, Tried::Over(next))
                }
                Happened::Gone(by) => {
                    let runner = race.swap_remove(0);
                    runner.leads(call);
                    let error = broken(&self.worker, by, "");
                    runner.parties.ended(&self.worker, &call.entry(0, error));
                    (runner, Tried::Over(Next::Abort))
                }
            };
            let failure = match &tried {
                Tried::Over(_) => {
                    race.drain(..).for_each(|other| self.overtaken(call, other));
                    return (runner.parties, tried);
                }
                _ if race.is_empty() => return (runner.parties, tried),
                Tried::Failed { failure, .. } | Tried::Again(failure) => *failure,
                Tried::Stale => Failure::Reset,
            };
            self.lost(call, &runner, "failed while another endpoint was asked", flag(failure));
        }
    }

    async fn happens(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        race: &mut [Runner<'_>],
        due: Option<Instant>,
    ) -> Happened {
        let callees: Vec<_> = race.iter().filter_map(|runner| runner.parties.callee.clone()).collect();
        let tell = |callee: &Account, decision: &Decision| {
            callee.judged(&self.worker, &call.entry(0, "").of_callee(&decision.rule), decision);
        };
        let denied = self.turned(
            &call.route,
            call.taken.as_deref(),
            call.arrived.asked,
            callees.iter().map(|callee| &**callee),
            &call.audited,
            tell,
        );
        let progress = call.arrived.progress;
        let late = race.iter().filter_map(|runner| runner.deadline).min();
        let due = due.filter(|_| down.is_whole());
        tokio::select! {
            biased;
            denial = denied => return Happened::Denied(denial),
            index = next(race) => return Happened::Next(index),
            () = until(late) => {}
            () = stands_still(call.idle_timeout(), || progress.sent.get() + progress.received.get()) => {
                race.iter_mut().for_each(|runner| runner.deadline = Some(Instant::now()));
            }
            () = until(due), if due.is_some() => return Happened::Due,
            by = down.gone() => return Happened::Gone(by),
        }
        let now = Instant::now();
        let late = |runner: &Runner<'_>| runner.deadline.is_some_and(|deadline| deadline <= now);
        let index = race.iter().position(late).unwrap_or_default();
        race[index].become_late();
        Happened::Next(index)
    }

    /// One that has something to do does it. `None`: it waits again.
    async fn step(
        &self,
        down: &mut impl Downstream,
        call: &mut Call<'_>,
        runner: &mut Runner<'_>,
        race: &mut Vec<Runner<'_>>,
        due: Option<Instant>,
    ) -> Option<Tried> {
        runner.leads(call);
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
                let mut others = others.borrow_mut();
                others.drain(..).for_each(|other| self.overtaken(call, other));
                None
            }
            // Who is still asked may do better.
            failure if !others.borrow().is_empty() => failure,
            failure => failure.filter(|failure| call.may_retry(&self.worker, *failure)),
        };
        let trial = Trial {
            hop: &runner.hop,
            parties: &runner.parties,
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

    /// Begins a try beside the others, where there is an endpoint that was not asked and it is paid for. When the next one
    /// may begin, if any may. One that the called unit's policy refuses has failed.
    async fn another<'a>(&'a self, call: &mut Call<'_>, policy: Hedge, race: &mut Vec<Runner<'a>>) -> Option<Instant> {
        let asked = |hop: &Hop| {
            hop.endpoint
                .as_ref()
                .is_none_or(|endpoint| call.tried.contains(&endpoint.id))
        };
        let hop = Hop::pick(call).ok().filter(|hop| !asked(hop))?;
        let paid = call.pay(&self.worker)?;
        race[0].leads(call);
        let message = format!("no response after {:?}: another endpoint is asked, too", policy.after);
        race[0].parties.caller.retried(&self.worker, &call.entry(0, &message));
        call.tries += 1;
        call.flag = Some(Flag::Hedged);
        call.attempt = Some(call.traced.attempt(&self.worker, call.arrived.begun));
        call.endpoint.clone_from(&hop.endpoint);
        let parties = match self.parties(call, &hop, false).await {
            Ok(parties) => parties,
            Err(Refusal { caller, fault, .. }) => {
                let entry = Entry {
                    flag: Some(fault.flag()),
                    ..call.entry(fault.status(), "refused while another endpoint was asked")
                };
                caller.tried(&self.worker, &entry);
                call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
                return next_hedge(call);
            }
        };
        let in_flight = InFlight::begin(&call.route.connector, call.service.as_ref(), hop.endpoint.as_ref());
        let paid = Some(paid);
        race.push(Runner {
            _paid: paid,
            ..self.runner(call, hop, parties, in_flight, false)
        });
        next_hedge(call)
    }

    /// Another one has the answer.
    fn overtaken(&self, call: &Call<'_>, runner: Runner<'_>) {
        runner.in_flight.overtaken();
        self.lost(
            call,
            &runner,
            "ended: another endpoint answered first",
            Some(Flag::Hedged),
        );
        runner.state.abort();
    }

    /// One of several is over, and is not what the request comes to.
    fn lost(&self, call: &Call<'_>, runner: &Runner<'_>, message: &str, flag: Option<Flag>) {
        let entry = Entry {
            attempt: runner.attempt,
            endpoint: runner.hop.endpoint.as_deref(),
            flag,
            ..call.entry(0, message)
        };
        runner.parties.caller.tried(&self.worker, &entry);
        runner.parties.callee_ended(&self.worker, &entry);
    }
}

/// When another one may begin, if any may.
fn next_hedge(call: &Call<'_>) -> Option<Instant> {
    call.may_hedge().map(|policy| Instant::now() + policy.after)
}

/// The one that has something to do.
async fn next(race: &mut [Runner<'_>]) -> usize {
    poll_fn(|cx| {
        let ready = race.iter_mut().position(|runner| runner.poll_next(cx).is_ready());
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// The one whom a denial concerns.
fn whose(race: &[Runner<'_>], denial: &Denial) -> usize {
    let is_its = |callee: &Rc<Callee>| {
        let about = &callee.account.about;
        about.direction == denial.about.direction && about.unit.unit == denial.about.unit.unit
    };
    let concerned = |runner: &Runner<'_>| runner.parties.callee.as_ref().is_some_and(is_its);
    race.iter().position(concerned).unwrap_or_default()
}
