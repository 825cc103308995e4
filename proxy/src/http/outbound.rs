//! Turns requests of a unit of this host into requests to services: judged, routed, timed, repeated.
//!
//! Every request goes by the config in force when it comes. To a unit of the same host it is one pass: both sides'
//! policies, no wire.

mod judge;

use std::cell::Cell;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::Decision;
use hostmesh_proxy_core::config::{Timeouts, Unit};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{RequestEdits, RequestHead, ResponseHead};
use hostmesh_proxy_core::retry::{self, is_idempotent};
use tokio::time::Instant;

use super::call::{Call, InFlight, Tried, describe, failed_connect, failure_of, pause, status, timed_out, until};
use super::conn::Conn;
use super::exchange::{Ended, Exchange, Tally, Upload};
use super::hop::{Hop, Parties};
use super::observe::{Account, Entry, broken, count_slow, span};
use super::route::{Route, To};
use super::session::{self, Handler, Next, refuse, reply};
use crate::connect::ConnectError;
use crate::rejudge::{self, Audited, Denial};
use crate::stream::Stream;
use crate::tcp::Relayed;
use crate::wire::idle::Key;
use crate::worker::{About, Worker};

/// Serves a connection of `unit` from `client` to `called`, which is an HTTP port of a service or of a unit of this host.
pub async fn serve(worker: Rc<Worker>, unit: Arc<Unit>, called: SocketAddr, client: IpAddr, stream: Stream) {
    let Some(route) = Route::find(&worker, unit.number, called, client) else {
        return stream.abort();
    };
    let draining = worker.shared.draining();
    let number = unit.number;
    let mut calling = Calling {
        worker,
        number,
        called,
        client,
        route,
        accounts: Vec::new(),
        kept: None,
        tunnel: None,
        audited: Audited::default(),
        begun: Instant::now(),
    };
    session::serve(stream, draining, &mut calling).await;
}

struct Calling {
    worker: Rc<Worker>,
    number: u32,
    called: SocketAddr,
    client: IpAddr,
    route: Route,
    /// One for each pair of unit and peer.
    accounts: Vec<Rc<Account>>,
    /// The connection to an application of this host, between requests.
    kept: Option<(Arc<str>, u16, Conn)>,
    /// The request that became a tunnel, and the unit of this host to which it leads.
    tunnel: Option<Box<(RequestHead, Option<Rc<Account>>)>>,
    /// Of the request that is under way.
    audited: Audited,
    /// When the last request began.
    begun: Instant,
}

impl Handler for Calling {
    fn timeouts(&self) -> Timeouts {
        self.route.connector.config.timeouts
    }

    async fn request(&mut self, down: &mut Conn, request: RequestHead, last: bool) -> Next {
        let begun = Instant::now();
        self.begun = begun;
        if self.refresh().is_none() {
            let message = format!("there is no more HTTP at {}", self.called);
            self.about("".into()).failed(&self.worker, begun, message);
            return Next::Abort;
        }
        let (replayable, tally) = (Cell::new(true), Tally::default());
        let service = self.route.to.service().cloned();
        let deadline = service
            .as_ref()
            .and_then(|service| service.traffic.timeout)
            .map(|timeout| begun + timeout);
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
            callee: None,
        };
        if !self.route.decision.verdict.passes() {
            self.account("".into(), "outbound")
                .denied(&self.worker, &call.entry(0, ""), &self.route.decision);
            return reply(down, &request, Fault::Denied, &Fault::Denied.to_string(), last).await;
        }
        let next = self.carry(down, &mut call).await;
        if matches!(next, Next::Tunnel(_)) {
            let callee = call.callee.take();
            self.tunnel = Some(Box::new((request, callee)));
        }
        next
    }

    fn unreadable(&mut self, fault: Fault) {
        count_slow(&self.worker, fault);
        self.account("".into(), "outbound")
            .about
            .failed(&self.worker, Instant::now(), fault.to_string());
    }

    async fn denied(&self) -> Denial {
        match self.tunnel.as_deref() {
            Some((request, callee)) => {
                let audited =
                    |callee: &Account, decision: &Decision| callee.about.audited(&self.worker, &decision.rule);
                self.turned(request, callee.as_deref(), audited).await
            }
            None => pending().await,
        }
    }

    fn tunnelled(&mut self, relayed: &Relayed) {
        if let Some(denial) = &relayed.denied {
            denial.tell(&self.worker, self.begun, relayed.sent, relayed.received);
            if denial.about.direction == "outbound" {
                return;
            }
        }
        self.account("".into(), "outbound")
            .about
            .relayed(&self.worker, self.begun, &self.route.decision.rule, relayed);
    }
}

impl Calling {
    /// Finds the route again when another config is in force; a unit that is not there any more may call nobody. `None`:
    /// there is no more HTTP where it led.
    fn refresh(&mut self) -> Option<()> {
        let shared = &self.worker.shared;
        if !shared.is_in_force(&self.route.connector.config) {
            if shared.config()?.unit_by_number(self.number).is_none() {
                self.route.decision = rejudge::unknown_unit();
                return Some(());
            }
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
        let mut upload = Upload::new(call.request, call.replayable, self.timeouts().stall);
        let mut fresh = false;
        loop {
            let Some(hop) = self.pick(&call.tried) else {
                return self
                    .give_up(down, call, None, Fault::NoEndpoint, &Fault::NoEndpoint.to_string())
                    .await;
            };
            if !fresh {
                call.tries += 1;
            }
            let parties = match self.parties(down, call, &hop).await {
                Ok(parties) => parties,
                Err(next) => return next,
            };
            call.callee = parties.callee.as_ref().map(|(callee, _)| callee.clone());
            let _in_flight = InFlight::begin(&self.worker, hop.endpoint.as_ref());
            call.span.span_id = call.span.child(self.worker.random()).span_id;
            let failure = match self.attempt(down, call, &hop, &parties, &mut upload, fresh).await {
                Tried::Over(next) => return next,
                Tried::Stale => {
                    fresh = true;
                    call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
                    continue;
                }
                Tried::Again(failure) => failure,
                Tried::Failed { failure, .. } if call.may_retry(&self.worker, failure) => failure,
                Tried::Failed { fault, message, .. } => {
                    return self.give_up(down, call, Some(&parties), fault, &message).await;
                }
            };
            fresh = false;
            let message = describe(failure);
            let entry = call.entry(status(failure), &message);
            parties.caller.retried(&self.worker, &entry);
            parties.callee_ended(&self.worker, &entry);
            call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
            pause(retry::backoff(call.tries, self.worker.random()), call.deadline).await;
        }
    }

    fn pick(&self, tried: &[u64]) -> Option<Hop> {
        match &self.route.to {
            To::Unit { unit, port, .. } => Some(Hop {
                endpoint: None,
                local: Some((unit.clone(), *port)),
                target: port.port,
            }),
            To::Service { service, port, only } => {
                let endpoint = match only {
                    Some(endpoint) => endpoint.clone(),
                    None => self.route.connector.pick(service, tried)?,
                };
                let local = endpoint
                    .local
                    .as_ref()
                    .and_then(|unit| Some((unit.clone(), *unit.port(port.target)?)));
                Some(Hop {
                    endpoint: Some(endpoint),
                    local,
                    target: port.target,
                })
            }
        }
    }

    /// One try, to its end.
    async fn attempt(
        &mut self,
        down: &mut Conn,
        call: &Call<'_>,
        hop: &Hop,
        parties: &Parties,
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
            edits: RequestEdits {
                traceparent: Some(&traceparent),
                peer,
            },
            deadline,
            from_application: is_local,
            last: call.last,
            timeouts: self.timeouts(),
            tally: call.tally,
        };
        let again = |response: &ResponseHead| {
            let failure = failure_of(response, is_local)?;
            call.may_retry(&self.worker, failure).then_some(failure)
        };
        let denied = self.turned(call.request, call.callee.as_deref(), |callee, decision| {
            callee.denied(&self.worker, &call.entry(0, ""), decision);
        });
        let ended = exchange.run(down, &mut up, upload, again, denied).await;
        let entry = |status: u16, error| {
            let entry = call.entry(status, error);
            let sent = entry.sent + upload.length() as u64;
            parties.ended(&self.worker, &Entry { sent, ..entry });
        };
        match ended {
            Ended::Answered {
                status,
                upstream_clean,
                downstream_clean,
            } => {
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
            Ended::Denied { status, denial } => {
                up.deny();
                let entry = call.entry(status, "");
                let (sent, decision) = (entry.sent + upload.length() as u64, &denial.decision);
                parties.denied(&self.worker, &Entry { sent, ..entry }, &denial);
                Tried::Over(refuse(down, call.request, decision, status, call.last).await)
            }
            Ended::Broken { status, by } => {
                entry(status, broken(&self.worker, by, "the service broke off its response"));
                up.abort();
                Tried::Over(Next::Abort)
            }
            Ended::Failed(fault) => {
                up.abort();
                count_slow(&self.worker, fault);
                let idempotent = is_idempotent(call.request.method());
                if fault == Fault::Reset && is_used && call.replayable.get() && idempotent {
                    return Tried::Stale;
                }
                match fault.failure() {
                    Some(failure) => Tried::Failed {
                        fault,
                        failure,
                        message: fault.to_string(),
                    },
                    None => Tried::Over(self.give_up(down, call, Some(parties), fault, &fault.to_string()).await),
                }
            }
        }
    }

    /// A connection for one request, and whether it has served others.
    async fn connect(&mut self, hop: &Hop, fresh: bool) -> Result<(Conn, bool), ConnectError> {
        let connector = &self.route.connector;
        if let Some((unit, port)) = &hop.local {
            let kept = self
                .kept
                .take()
                .filter(|(kept, at, _)| *kept == unit.unit && *at == port.port && !fresh);
            if let Some(conn) = kept.and_then(|(_, _, conn)| conn.if_clean()) {
                return Ok((conn, true));
            }
            let delivered = connector.deliver(unit, port).await;
            return Ok((
                Conn::new(delivered.map_err(|error| ConnectError::Unreachable(error.to_string()))?),
                false,
            ));
        }
        let Some(endpoint) = &hop.endpoint else {
            return Err(ConnectError::Unreachable("nothing to connect to".to_owned()));
        };
        if !fresh
            && let Some(wire) = self
                .worker
                .idle
                .take(&Key::new(&connector.unit.unit, endpoint, hop.target))
        {
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
        &mut self,
        down: &mut Conn,
        call: &Call<'_>,
        parties: Option<&Parties>,
        fault: Fault,
        message: &str,
    ) -> Next {
        let entry = Entry {
            flag: fault.word(),
            ..call.entry(fault.status(), message)
        };
        match parties {
            Some(parties) => parties.ended(&self.worker, &entry),
            None => self.account("".into(), "outbound").ended(&self.worker, &entry),
        }
        reply(down, call.request, fault, &fault.to_string(), call.last).await
    }

    /// The caller's account with a peer.
    fn account(&mut self, peer: Arc<str>, direction: &'static str) -> Rc<Account> {
        self.account_like(About {
            direction,
            ..self.about(peer)
        })
    }

    fn about(&self, peer: Arc<str>) -> About {
        About {
            unit: self.route.connector.unit.clone(),
            direction: "outbound",
            peer,
            service: self.route.to.service_name().clone(),
            port: self.route.to.port(),
            protocol: "http",
            client: self.client,
        }
    }

    fn account_like(&mut self, about: About) -> Rc<Account> {
        let is_same = |known: &&Rc<Account>| {
            let known = &known.about;
            Arc::ptr_eq(&known.unit, &about.unit) && known.peer == about.peer && known.direction == about.direction
        };
        if let Some(known) = self.accounts.iter().find(is_same) {
            return known.clone();
        }
        let account = Rc::new(Account::new(&self.worker, about));
        self.accounts.push(account.clone());
        account
    }
}
