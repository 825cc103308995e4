//! Turns requests of a unit of this host into requests to services: judged, routed, timed, repeated.
//!
//! Every request goes by the config in force when it comes. To a unit of the same host it is one pass: both sides'
//! policies, no wire.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::authorize::{self, Caller, Request, Verdict};
use hostmesh_proxy_core::config::{Endpoint, Port, Service, Unit};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{RequestEdits, RequestHead, ResponseHead};
use hostmesh_proxy_core::retry::{self, Failure, is_idempotent};
use hostmesh_proxy_core::trace::Span;
use tokio::time::{Instant, sleep, sleep_until};

use super::conn::Conn;
use super::exchange::{Ended, Exchange, Tally, Upload};
use super::observe::{Account, Entry, span};
use super::route::{Route, To};
use super::session::{self, Handler, Next, reply};
use crate::connect::ConnectError;
use crate::stream::Stream;
use crate::tcp::Relayed;
use crate::wire::idle::Key;
use crate::worker::{About, Worker};

/// Serves a connection of `unit` from `client` to `called`, which is an HTTP port of a service or of a unit of this host.
pub async fn serve(worker: Rc<Worker>, unit: Arc<Unit>, called: SocketAddr, client: IpAddr, stream: Stream) {
    let Some(route) = Route::find(&worker, unit.number, called, client) else { return stream.abort() };
    let draining = worker.shared.draining();
    let begun = Instant::now();
    let number = unit.number;
    let mut calling = Calling { worker, number, called, client, route, accounts: Vec::new(), kept: None, begun };
    session::serve(stream, draining, &mut calling).await;
}

struct Calling {
    worker: Rc<Worker>,
    number: u32,
    called: SocketAddr,
    client: IpAddr,
    route: Route,
    /// One for each identity that was called.
    accounts: Vec<Rc<Account>>,
    /// The connection to an application of this host, between requests.
    kept: Option<(Arc<str>, u16, Conn)>,
    begun: Instant,
}

/// Where one try goes.
struct Hop {
    /// The endpoint; `None`: a unit of this host that was called by address.
    endpoint: Option<Arc<Endpoint>>,
    /// The unit and its port, where it runs on this host.
    local: Option<(Arc<Unit>, Port)>,
    /// The port of the endpoint.
    target: u16,
}

/// Counts a request to an endpoint while it is under way.
struct InFlight(Rc<Worker>, Option<u64>);

impl InFlight {
    fn begin(worker: &Rc<Worker>, endpoint: Option<&Arc<Endpoint>>) -> Self {
        if let Some(endpoint) = endpoint {
            worker.loads.borrow_mut().begin(endpoint);
        }
        Self(worker.clone(), endpoint.map(|endpoint| endpoint.id))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(id) = self.1 {
            self.0.loads.borrow_mut().end(id);
        }
    }
}

/// What is known of a request under way.
struct Call<'a> {
    request: &'a RequestHead,
    service: Option<Arc<Service>>,
    rule: Arc<str>,
    span: Span,
    begun: Instant,
    /// When there must be a response's head.
    deadline: Option<Instant>,
    tries: u32,
    tried: Vec<u64>,
    replayable: &'a Cell<bool>,
    tally: &'a Tally,
    last: bool,
}

/// What comes of one try.
enum Tried {
    Over(Next),
    /// Another, without counting this one: the connection was dead before it was used.
    Stale,
    /// Another, if it may be; else this is the answer.
    Failed { fault: Fault, failure: Failure, message: String },
    /// Another, and the budget has paid for it.
    Again(Failure),
}

impl Call<'_> {
    fn entry<'a>(&'a self, status: u16, error: &'a str) -> Entry<'a> {
        Entry {
            request: self.request,
            rule: &self.rule,
            span: self.span,
            begun: self.begun,
            tries: self.tries,
            status,
            sent: self.tally.sent.get(),
            received: self.tally.received.get(),
            error,
        }
    }

    /// When this try must have a response's head.
    fn try_deadline(&self) -> Option<Instant> {
        let limit = self.service.as_ref().and_then(|service| service.traffic.retries?.per_try_timeout);
        let limit = limit.map(|limit| Instant::now() + limit);
        [self.deadline, limit].into_iter().flatten().min()
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// May there be another try? Takes it from the budget.
    fn may_retry(&self, worker: &Worker, failure: Failure) -> bool {
        let Some(service) = &self.service else { return false };
        let Some(policy) = &service.traffic.retries else { return false };
        let method = self.request.method();
        !self.is_late()
            && retry::may_retry(policy, failure, self.tries, method, self.replayable.get())
            && {
                let mut loads = worker.loads.borrow_mut();
                let now = loads.clock(Instant::now().into_std());
                loads.budget(&service.name).take(policy.budget, now)
            }
    }
}

impl Handler for Calling {
    async fn request(&mut self, down: &mut Conn, request: RequestHead, last: bool) -> Next {
        let begun = Instant::now();
        if self.refresh().is_none() {
            return Next::Abort;
        }
        let (replayable, tally) = (Cell::new(true), Tally::default());
        let service = self.route.to.service().cloned();
        let deadline = service.as_ref().and_then(|service| service.traffic.timeout).map(|timeout| begun + timeout);
        let mut call = Call {
            request: &request,
            service,
            rule: self.route.decision.rule.clone(),
            span: span(&self.worker, &request, self.route.connector.unit.trace),
            begun,
            deadline,
            tries: 0,
            tried: Vec::new(),
            replayable: &replayable,
            tally: &tally,
            last,
        };
        if !self.route.decision.verdict.passes() {
            self.account(None).denied(&self.worker, &call.entry(0, ""), &self.route.decision);
            return reply(down, &request, Fault::Denied, &Fault::Denied.to_string(), last).await;
        }
        self.carry(down, &mut call).await
    }

    fn unreadable(&mut self, fault: Fault) {
        self.account(None).about.failed(&self.worker, Instant::now(), fault.to_string());
    }

    fn tunnelled(&mut self, relayed: &Relayed) {
        self.account(None).about.relayed(&self.worker, self.begun, &self.route.decision.rule, relayed);
    }
}

impl Calling {
    /// Finds the route again when another config is in force. `None`: there is no more HTTP where it led.
    fn refresh(&mut self) -> Option<()> {
        let config = self.worker.shared.config()?;
        if !Arc::ptr_eq(&config, &self.route.connector.config) {
            self.route = Route::find(&self.worker, self.number, self.called, self.client)?;
            self.accounts.clear();
            self.kept = None;
        }
        Some(())
    }

    async fn carry(&mut self, down: &mut Conn, call: &mut Call<'_>) -> Next {
        if let Some(service) = &call.service {
            let mut loads = self.worker.loads.borrow_mut();
            let now = loads.clock(call.begun.into_std());
            loads.budget(&service.name).request(now);
        }
        let mut upload = Upload::new(call.request, call.replayable);
        let mut fresh = false;
        loop {
            let Some(hop) = self.pick(&call.tried) else {
                return self.give_up(down, call, None, Fault::NoEndpoint, &Fault::NoEndpoint.to_string()).await;
            };
            if !fresh {
                call.tries += 1;
            }
            let account = self.account(Some(&hop));
            if let Some(next) = self.judge_local(down, call, &hop, &account).await {
                return next;
            }
            let _in_flight = InFlight::begin(&self.worker, hop.endpoint.as_ref());
            call.span.span_id = call.span.child(self.worker.random()).span_id;
            let failure = match self.attempt(down, call, &hop, &account, &mut upload, fresh).await {
                Tried::Over(next) => return next,
                Tried::Stale => {
                    fresh = true;
                    continue;
                }
                Tried::Again(failure) => failure,
                Tried::Failed { failure, .. } if call.may_retry(&self.worker, failure) => failure,
                Tried::Failed { fault, message, .. } => {
                    return self.give_up(down, call, Some(&account), fault, &message).await;
                }
            };
            fresh = false;
            account.retried(&self.worker, &call.entry(status(failure), &describe(failure)));
            call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
            pause(retry::backoff(call.tries, self.worker.random()), call.deadline).await;
        }
    }

    fn pick(&self, tried: &[u64]) -> Option<Hop> {
        match &self.route.to {
            To::Unit { unit, port, .. } => {
                Some(Hop { endpoint: None, local: Some((unit.clone(), *port)), target: port.port })
            }
            To::Service { service, port, only } => {
                let random = self.worker.random();
                let endpoint = match only {
                    Some(endpoint) => endpoint.clone(),
                    None => self.worker.loads.borrow_mut().pick(service, tried, random)?.clone(),
                };
                let local = endpoint.local.as_ref().and_then(|unit| Some((unit.clone(), *unit.port(port.target)?)));
                Some(Hop { endpoint: Some(endpoint), local, target: port.target })
            }
        }
    }

    /// The called unit's own policy, where it is a unit of this host. `Some`: refused, and the client knows.
    async fn judge_local(&self, down: &mut Conn, call: &Call<'_>, hop: &Hop, account: &Account) -> Option<Next> {
        let (unit, port) = hop.local.as_ref()?;
        let request = call.request;
        let asked = Request { method: request.method(), path: request.path(), headers: request.headers() };
        let caller = &self.route.connector.unit;
        let decision = authorize::request(unit, &Caller::Identity(&caller.spiffe_id), port.port, &asked);
        if decision.verdict == Verdict::Allow {
            return None;
        }
        let peer = caller.spiffe_id.clone();
        let about = About { unit: unit.clone(), peer, port: port.port, ..account.about.clone() };
        Account::new(&self.worker, about).denied(&self.worker, &call.entry(0, ""), &decision);
        let fault = match decision.verdict {
            Verdict::Allow | Verdict::AuditDeny => return None,
            Verdict::Deny => Fault::Denied,
            Verdict::BadPath => Fault::BadPath,
        };
        account.ended(&self.worker, &call.entry(fault.status(), ""));
        Some(reply(down, request, fault, &fault.to_string(), call.last).await)
    }

    /// One try, to its end.
    async fn attempt(
        &mut self,
        down: &mut Conn,
        call: &Call<'_>,
        hop: &Hop,
        account: &Account,
        upload: &mut Upload<'_>,
        fresh: bool,
    ) -> Tried {
        let deadline = call.try_deadline();
        let (mut up, is_used) = tokio::select! {
            biased;
            connected = self.connect(hop, fresh) => match connected {
                Ok(connected) => connected,
                Err(error) => return failed_connect(&error),
            },
            () = until(deadline) => return timed_out(),
        };
        let traceparent = call.span.to_string();
        let is_local = hop.local.is_some();
        let peer = is_local.then_some(&*self.route.connector.unit.spiffe_id);
        let exchange = Exchange {
            request: call.request,
            edits: RequestEdits { traceparent: Some(&traceparent), peer },
            deadline,
            from_application: is_local,
            last: call.last,
            tally: call.tally,
        };
        let again = |response: &ResponseHead| {
            let failure = failure_of(response, is_local)?;
            call.may_retry(&self.worker, failure).then_some(failure)
        };
        let ended = exchange.run(down, &mut up, upload, again).await;
        let entry = |status: u16, error| {
            let entry = call.entry(status, error);
            let sent = entry.sent + upload.length() as u64;
            account.ended(&self.worker, &Entry { sent, ..entry });
        };
        match ended {
            Ended::Answered { status, upstream_clean, downstream_clean } => {
                entry(status, "");
                if upstream_clean {
                    self.keep(hop, up);
                }
                Tried::Over(if downstream_clean { Next::Keep } else { Next::Close })
            }
            Ended::Upgraded => {
                entry(101, "");
                Tried::Over(Next::Tunnel(up))
            }
            Ended::Refused(failure) => {
                up.abort();
                Tried::Again(failure)
            }
            Ended::Broken { status, by_client } => {
                entry(status, if by_client { "the client broke off" } else { "the service broke off its response" });
                up.abort();
                Tried::Over(Next::Abort)
            }
            Ended::Failed(Fault::Gone) => {
                entry(0, "the client broke off");
                up.abort();
                Tried::Over(Next::Abort)
            }
            Ended::Failed(fault) => {
                up.abort();
                let idempotent = is_idempotent(call.request.method());
                if fault == Fault::Reset && is_used && call.replayable.get() && idempotent {
                    return Tried::Stale;
                }
                match fault.failure() {
                    Some(failure) => Tried::Failed { fault, failure, message: fault.to_string() },
                    None => Tried::Over(self.give_up(down, call, Some(account), fault, &fault.to_string()).await),
                }
            }
        }
    }

    /// A connection for one request, and whether it has served others.
    async fn connect(&mut self, hop: &Hop, fresh: bool) -> Result<(Conn, bool), ConnectError> {
        let connector = &self.route.connector;
        if let Some((unit, port)) = &hop.local {
            let kept = self.kept.take().filter(|(kept, at, _)| *kept == unit.unit && *at == port.port && !fresh);
            if let Some(conn) = kept.and_then(|(_, _, conn)| conn.if_clean()) {
                return Ok((conn, true));
            }
            let delivered = connector.deliver(unit, port).await;
            return Ok((Conn::new(delivered.map_err(|error| ConnectError::Unreachable(error.to_string()))?), false));
        }
        let Some(endpoint) = &hop.endpoint else {
            return Err(ConnectError::Unreachable("nothing to connect to".to_owned()));
        };
        if !fresh && let Some(wire) = self.worker.idle.take(&Key::new(&connector.unit.unit, endpoint, hop.target)) {
            return Ok((Conn::new(Stream::Wire(Box::new(wire))), true));
        }
        Ok((Conn::new(connector.connect(endpoint, hop.target, true).await?), false))
    }

    /// The response has ended: the connection waits for the next request.
    fn keep(&mut self, hop: &Hop, up: Conn) {
        match (&hop.local, &hop.endpoint) {
            (Some((unit, port)), _) => self.kept = Some((unit.unit.clone(), port.port, up)),
            (None, Some(endpoint)) => {
                if let Some(up) = up.if_clean() {
                    self.route.connector.release(endpoint, hop.target, up.into_parts().0);
                }
            }
            (None, None) => {}
        }
    }

    async fn give_up(
        &self,
        down: &mut Conn,
        call: &Call<'_>,
        account: Option<&Account>,
        fault: Fault,
        message: &str,
    ) -> Next {
        let nobody;
        let account = match account {
            Some(account) => account,
            None => {
                nobody = self.account_of("".into(), "outbound");
                &nobody
            }
        };
        account.ended(&self.worker, &call.entry(fault.status(), message));
        reply(down, call.request, fault, &fault.to_string(), call.last).await
    }

    fn account(&mut self, hop: Option<&Hop>) -> Rc<Account> {
        let (peer, direction) = match hop {
            None => ("".into(), "outbound"),
            Some(Hop { local: Some((unit, _)), .. }) => (unit.spiffe_id.clone(), "local"),
            Some(Hop { endpoint, .. }) => {
                (endpoint.as_ref().map_or_else(|| "".into(), |endpoint| endpoint.spiffe_id.clone()), "outbound")
            }
        };
        let known = self.accounts.iter().find(|known| known.about.peer == peer && known.about.direction == direction);
        if let Some(known) = known {
            return known.clone();
        }
        let account = Rc::new(self.account_of(peer, direction));
        self.accounts.push(account.clone());
        account
    }

    fn account_of(&self, peer: Arc<str>, direction: &'static str) -> Account {
        let about = About {
            unit: self.route.connector.unit.clone(),
            direction,
            peer,
            service: self.route.to.service_name().clone(),
            port: self.route.to.port(),
            protocol: "http",
            client: self.client,
        };
        Account::new(&self.worker, about)
    }
}

/// Is this a response that another try might better? Of another proxy it is known when nothing reached the application.
fn failure_of(response: &ResponseHead, from_application: bool) -> Option<Failure> {
    if response.status < 500 {
        return None;
    }
    let word = response.single("x-hostmesh-error").filter(|_| !from_application);
    Some(match word {
        Some(b"connect-failure") => Failure::Connect,
        _ => Failure::Status(response.status),
    })
}

fn failed_connect(error: &ConnectError) -> Tried {
    let fault = match error {
        ConnectError::Unreachable(_) => Fault::Connect,
        ConnectError::Denied => Fault::Denied,
        ConnectError::NotReady => Fault::Internal,
    };
    match fault.failure() {
        Some(failure) => Tried::Failed { fault, failure, message: error.to_string() },
        // Status 0 is no failure that any policy names: it is answered as it is.
        None => Tried::Failed { fault, failure: Failure::Status(0), message: error.to_string() },
    }
}

fn timed_out() -> Tried {
    let fault = Fault::Timeout;
    Tried::Failed { fault, failure: Failure::TryTimeout, message: fault.to_string() }
}

fn status(failure: Failure) -> u16 {
    if let Failure::Status(status) = failure { status } else { 0 }
}

fn describe(failure: Failure) -> String {
    match failure {
        Failure::Status(status) => format!("the service answered {status}: trying again"),
        Failure::Connect => "nothing reached the service: trying again".to_owned(),
        Failure::Reset => "the connection broke: trying again".to_owned(),
        Failure::TryTimeout => "no response in time: trying again".to_owned(),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn pause(wait: Duration, deadline: Option<Instant>) {
    if wait > Duration::ZERO {
        tokio::select! {
            () = sleep(wait) => {}
            () = until(deadline) => {}
        }
    }
}
