//! The tries of one request that are under way at once, and the one that may come to them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::judge::Refusal;
use crate::breaker::Room;
use crate::connect::ConnectError;
use crate::http::call::{Call, Paid};
use crate::http::down::Up;
use crate::http::hop::{Callee, Hop, Parties};
use crate::http::traced::Attempt;
use crate::in_flight::InFlight;
use crate::rejudge::Denial;
use crate::traces::connection::Steps;

/// Never empty while the request waits.
pub(super) struct Race<'a> {
    pub runners: Vec<Runner<'a>>,
    pub candidate: Option<Candidate<'a>>,
}

/// Where a try goes, whom it concerns, its span.
pub(super) struct Leg {
    pub hop: Hop,
    pub parties: Parties,
    pub attempt: Option<Attempt>,
}

/// One try of those that are under way.
pub(super) struct Runner<'a> {
    pub leg: Leg,
    pub in_flight: InFlight,
    /// When it must have a response's head.
    pub deadline: Option<Instant>,
    pub state: State<'a>,
    pub is_used: bool,
    pub room: Room,
    pub _paid: Option<Paid>,
}

/// A try that may come: whom it would call, where that is a unit of this host, and the gatekeeper are asked.
pub(super) struct Candidate<'a> {
    /// Nobody is called yet.
    pub leg: Leg,
    /// When the request must have a response's head.
    pub deadline: Option<Instant>,
    pub judged: Judged<'a>,
    pub paid: Paid,
}

pub(super) type Judged<'a> = Pin<Box<dyn Future<Output = Result<Parties, Refusal>> + 'a>>;

pub(super) enum State<'a> {
    Connecting(Pin<Box<dyn Future<Output = Connected> + 'a>>),
    Connected(Connected),
    /// The request has gone out.
    Asked(Up),
    /// The first of the response, or its end, has come.
    Heard(Up),
    /// It has no more time.
    Late,
}

pub(super) struct Connected {
    pub made: Result<(Up, bool, Room), ConnectError>,
    pub dialed: Option<Steps>,
}

/// Who has something to do.
pub(super) enum Ready<'a> {
    Runner(usize),
    Candidate(Box<Candidate<'a>>, Result<Parties, Refusal>),
}

impl<'a> Race<'a> {
    pub fn is_empty(&self) -> bool {
        self.runners.is_empty() && self.candidate.is_none()
    }

    /// Waits until there is something to do for one.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Ready<'a>> {
        if let Some(index) = self
            .runners
            .iter_mut()
            .position(|runner| runner.poll_next(cx).is_ready())
        {
            return Poll::Ready(Ready::Runner(index));
        }
        self.poll_judged(cx).map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_judged(&mut self, cx: &mut Context<'_>) -> Option<Ready<'a>> {
        let Poll::Ready(judged) = self.candidate.as_mut()?.judged.as_mut().poll(cx) else {
            return None;
        };
        Some(Ready::Candidate(Box::new(self.candidate.take()?), judged))
    }

    /// When the first of them is late.
    pub fn deadline(&self) -> Option<Instant> {
        let candidate = self.candidate.as_ref().and_then(|candidate| candidate.deadline);
        let runners = self.runners.iter().filter_map(|runner| runner.deadline);
        runners.chain(candidate).min()
    }

    /// They have no more time.
    pub fn end_now(&mut self) {
        let now = Some(Instant::now());
        self.runners.iter_mut().for_each(|runner| runner.deadline = now);
        self.candidate.iter_mut().for_each(|candidate| candidate.deadline = now);
    }

    /// Which runner is late; `None`: the candidate is.
    pub fn late(&mut self) -> Option<usize> {
        let now = Instant::now();
        let late = |runner: &Runner<'_>| runner.deadline.is_some_and(|deadline| deadline <= now);
        let index = self.runners.iter().position(late)?;
        self.runners[index].become_late();
        Some(index)
    }

    /// The one whom the end of all concerns: the runner at this place, or where none runs the one that would.
    pub fn leave(&mut self, index: usize) -> Leg {
        match self.candidate.take_if(|_| self.runners.is_empty()) {
            Some(candidate) => candidate.leg,
            None => self.runners.swap_remove(index).leg,
        }
    }

    /// The one whom a denial concerns.
    pub fn whose(&self, denial: &Denial) -> usize {
        let is_its = |callee: &Rc<Callee>| {
            let about = &callee.account.about;
            about.direction == denial.about.direction && about.unit.unit == denial.about.unit.unit
        };
        let concerned = |runner: &Runner<'_>| runner.leg.parties.callee.as_ref().is_some_and(is_its);
        self.runners.iter().position(concerned).unwrap_or_default()
    }
}

impl Leg {
    /// The request goes on by this one.
    pub fn leads(&self, call: &mut Call<'_>) {
        call.attempt = self.attempt;
        call.endpoint.clone_from(&self.hop.endpoint);
        call.callee.clone_from(&self.parties.callee);
    }
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

    fn become_late(&mut self) {
        std::mem::replace(&mut self.state, State::Late).abort();
    }
}

impl State<'_> {
    pub fn abort(self) {
        if let Self::Asked(up) | Self::Heard(up) | Self::Connected(Connected { made: Ok((up, ..)), .. }) = self {
            up.abort();
        }
    }
}
