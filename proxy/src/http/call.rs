//! One request of a unit under way: what is known of it, how its tries can end, and may there be another.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::balance::circuit::Resource;
use hostmesh_proxy_core::balance::hash;
use hostmesh_proxy_core::config::{Balance, Endpoint, Hedge, Retries, Service};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::fields::{Changes, FieldEdits};
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::retry::{self, Failure};
use hostmesh_proxy_core::route::{Action, Route as PolicyRoute};
use hostmesh_proxy_core::trace::Outgoing;
use tokio::time::{Instant, sleep, sleep_until};

use super::down::{Answer, Arrived, BrokenBy, Ended};
use super::hop::Callee;
use super::observe::Entry;
use super::route::Route;
use super::session::Next;
use super::traced::{Attempt, Part, Traced};
use crate::breaker::{Permit, Room};
use crate::connect::ConnectError;
use crate::rejudge::Audited;
use crate::worker::Worker;

/// What a route of the service's policy makes of a request.
pub struct Taken {
    pub route: Arc<PolicyRoute>,
    /// It is asked for as this; `None`: as it came.
    pub target: Option<String>,
    /// A copy goes to the mirror.
    pub mirrored: bool,
}

impl Taken {
    /// What is done to the request on its way.
    pub fn changes(&self) -> Option<Changes<'_>> {
        match &self.route.action {
            Action::Forward(Some(rewrite)) => Some(Changes {
                target: self.target.as_deref(),
                host: rewrite.host.as_deref(),
                fields: &rewrite.fields,
            }),
            _ => None,
        }
    }

    /// What is done to the response.
    pub fn response(&self) -> Option<&FieldEdits> {
        Some(&self.route.response).filter(|fields| !fields.is_empty())
    }
}

/// What is known of a request under way.
pub struct Call<'a> {
    pub arrived: Arrived<'a>,
    /// By the config in force when it began.
    pub route: Rc<Route>,
    /// Where it goes.
    pub service: Option<Arc<Service>>,
    /// Of the service that was called, or of its route.
    pub retries: Option<Retries>,
    pub hedge: Option<Hedge>,
    /// The route of the called service's policy.
    pub taken: Option<Rc<Taken>>,
    /// What was done to it, where it goes on all the same.
    pub flag: Option<Flag>,
    pub traced: &'a Traced,
    /// The try under way.
    pub attempt: Option<Attempt>,
    /// When there must be a response's head.
    pub deadline: Option<Instant>,
    pub tries: u32,
    pub tried: Vec<u64>,
    /// What consistent hashing goes by.
    pub key: Option<u64>,
    /// Room for the retry that is under way.
    pub retry: RefCell<Option<Paid>>,
    /// Room for the connection of this try.
    pub room: RefCell<Room>,
    /// Where the try goes, where that is an endpoint of a service.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Who is called by this try, where it is a unit of this host.
    pub callee: Option<Rc<Callee>>,
    pub audited: &'a Audited,
}

/// What a try after the first takes up, until it is dropped.
pub struct Paid {
    _room: Option<Permit>,
}

/// What comes of one try.
pub enum Tried {
    Over(Next),
    /// Another, without counting this one: the connection was dead before it was used.
    Stale,
    /// Another, if it may be; else this is the answer.
    Failed {
        fault: Fault,
        failure: Failure,
        message: String,
    },
    /// Another, and the budget has paid for it.
    Again(Failure),
}

impl<'a> Call<'a> {
    /// What is known now, for who asks about it while the request goes on. Of room it has none.
    pub fn copy(&self) -> Self {
        Self {
            route: self.route.clone(),
            service: self.service.clone(),
            taken: self.taken.clone(),
            tried: self.tried.clone(),
            retry: RefCell::default(),
            room: RefCell::default(),
            endpoint: self.endpoint.clone(),
            callee: self.callee.clone(),
            ..*self
        }
    }

    pub fn entry<'b>(&'b self, status: u16, error: &'b str) -> Entry<'b> {
        Entry {
            arrived: self.arrived,
            rule: &self.route.decision.rule,
            part: self.traced.whole(self.arrived.begun),
            attempt: self.attempt,
            tries: self.tries,
            status,
            error,
            endpoint: self.endpoint.as_deref(),
            route: self.taken.as_ref().map_or("", |taken| &taken.route.name),
            flag: self.flag,
        }
    }

    /// The span of the try under way.
    pub fn part(&self) -> Part<'_> {
        let whole = self.traced.whole(self.arrived.begun);
        self.attempt.map_or(whole, |attempt| whole.attempt(&attempt))
    }

    /// What whom this try calls is told of the trace.
    pub fn outgoing(&self, is_local: bool) -> Outgoing {
        match &self.attempt {
            Some(attempt) => self.traced.to_called(attempt, is_local),
            None => self.traced.to_application(),
        }
    }

    /// When this try must have a response's head.
    pub fn try_deadline(&self) -> Option<Instant> {
        let limit = self.retries.and_then(|retries| retries.per_try_timeout);
        let limit = limit.map(|limit| Instant::now() + limit);
        [self.deadline, limit].into_iter().flatten().min()
    }

    /// How long nothing may move.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.service.as_ref()?.traffic.idle_timeout
    }

    /// How long to wait before the next try.
    pub fn backoff(&self, random: u64) -> Duration {
        retry::backoff(self.retries.and_then(|policy| policy.backoff), self.tries, random)
    }

    pub fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// May there be another try? Takes it from the budget.
    pub fn may_retry(&self, worker: &Worker, failure: Failure) -> bool {
        let Some(policy) = &self.retries else { return false };
        let Arrived { asked, progress, .. } = self.arrived;
        let (method, is_replayable) = (asked.method, progress.is_replayable.get());
        if self.is_late() || !retry::may_retry(policy, failure, self.tries, method, is_replayable) {
            return false;
        }
        self.retry.take();
        let paid = self.pay(worker);
        let is_paid = paid.is_some();
        self.retry.replace(paid);
        is_paid
    }

    /// Shall another endpoint have the request, though no policy says so? Nothing of it reached the one where it went, so
    /// this is no more than the way to it: an opaque connection goes to the first endpoint that can be reached, too. Each is
    /// tried once; a policy that names such failures says all there is to say.
    pub fn has_elsewhere(&self, failure: Failure, at: Option<&Arc<Endpoint>>) -> bool {
        let (Some(service), Some(at)) = (&self.service, at) else {
            return false;
        };
        let is_said = self.retries.is_some_and(|policy| policy.on.names(failure));
        if failure != Failure::Connect || is_said || !self.arrived.progress.is_replayable.get() || self.is_late() {
            return false;
        }
        let is_untried = |endpoint: &Endpoint| !self.tried.contains(&endpoint.id);
        let mut others = service.endpoints.iter().filter(|other| other.id != at.id);
        is_untried(at) && others.any(|other| is_untried(other))
    }

    /// By what another endpoint may be asked while this one is silent. No tunnel has two ends.
    pub fn may_hedge(&self) -> Option<Hedge> {
        let asked = self.arrived.asked;
        let policy = self
            .hedge
            .filter(|policy| retry::may_hedge(policy, self.tries, asked.method))?;
        let mut is_upgrade = false;
        asked.headers.each("upgrade", &mut |_| is_upgrade = true);
        (self.service.is_some() && !is_upgrade).then_some(policy)
    }

    /// Takes one more try from the breaker's limit and the budget. `None`: there is none to take.
    pub fn pay(&self, worker: &Worker) -> Option<Paid> {
        let service = self.service.as_ref()?;
        let share = self.retries.map_or(retry::BUDGET, |policy| policy.budget);
        let room = self.route.connector.take(service, Resource::Retries).ok()?;
        let mut loads = worker.loads.borrow_mut();
        let now = loads.clock(Instant::now().into_std());
        if !loads.budget(&service.name).take(share, now) {
            service.circuit().unpaid();
            return None;
        }
        Some(Paid { _room: room })
    }
}

/// What consistent hashing goes by, where the service's policy wants that and the request has it.
pub fn hash_key(service: Option<&Service>, arrived: Arrived<'_>, client: IpAddr) -> Option<u64> {
    match &service?.traffic.balance {
        Balance::ConsistentHash(by) => hash::key(&by.on, arrived.asked.headers, client),
        _ => None,
    }
}

/// Is this a response that another try might better? Of another proxy it is known when nothing reached the application.
pub fn failure_of(answer: &dyn Answer, from_application: bool) -> Option<Failure> {
    let grpc = answer.grpc_status().filter(|status| *status != 0);
    if grpc.is_none() && !matches!(answer.status(), 409 | 425 | 429 | 500..) {
        return None;
    }
    let word = answer.single("x-hostmesh-error").filter(|_| !from_application);
    Some(match (word, grpc) {
        (Some(b"connect-failure"), _) => Failure::Connect,
        (_, Some(status)) => Failure::Grpc(status),
        (_, None) => Failure::Status(answer.status()),
    })
}

pub fn failed_connect(error: &ConnectError) -> Tried {
    let fault = error.fault();
    match fault.failure() {
        Some(failure) => Tried::Failed {
            fault,
            failure,
            message: error.to_string(),
        },
        // Status 0 is no failure that any policy names: it is answered as it is.
        None => Tried::Failed {
            fault,
            failure: Failure::Status(0),
            message: error.to_string(),
        },
    }
}

/// Nothing moved for too long. `status`: of the answer that had begun; 0: none had.
pub fn stood_still(status: u16) -> Ended {
    match status {
        0 => Ended::Failed(Fault::Timeout),
        status => Ended::Broken {
            status,
            by: BrokenBy::Upstream,
        },
    }
}

pub fn timed_out() -> Tried {
    let fault = Fault::Timeout;
    Tried::Failed {
        fault,
        failure: Failure::TryTimeout,
        message: fault.to_string(),
    }
}

pub fn status(failure: Failure) -> u16 {
    if let Failure::Status(status) = failure {
        status
    } else {
        0
    }
}

/// The flag of such a try.
pub fn flag(failure: Failure) -> Option<Flag> {
    match failure {
        Failure::Status(_) | Failure::Grpc(_) => None,
        Failure::Connect => Some(Flag::ConnectFailure),
        Failure::Reset => Some(Flag::Reset),
        Failure::TryTimeout => Some(Flag::Timeout),
    }
}

pub fn describe(failure: Failure) -> String {
    match failure {
        Failure::Status(status) => format!("the service answered {status}: trying again"),
        Failure::Connect => "nothing reached the service: trying again".to_owned(),
        Failure::Reset => "the connection broke: trying again".to_owned(),
        Failure::TryTimeout => "no response in time: trying again".to_owned(),
        Failure::Grpc(code) => format!("the service answered grpc-status {code}: trying again"),
    }
}

pub async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

pub async fn pause(wait: Duration, deadline: Option<Instant>) {
    if wait > Duration::ZERO {
        tokio::select! {
            () = sleep(wait) => {}
            () = until(deadline) => {}
        }
    }
}
