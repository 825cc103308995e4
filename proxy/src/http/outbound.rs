//! Turns requests of a unit of this host into requests to services: judged, routed, timed, repeated.
//!
//! Every request goes by the config in force when it comes. To a unit of the same host it is one pass: both sides'
//! policies, no wire.

mod accounts;
mod attempt;
mod connections;
mod hedge;
mod judge;
mod mirror;
mod race;
mod routed;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::authorize::Decision;
use hostmesh_proxy_core::balance::circuit::Resource;
use hostmesh_proxy_core::config::{Protocol, Timeouts, Unit};
use hostmesh_proxy_core::error::Fault;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use self::race::Leg;
use super::call::{Call, Taken, Tried, describe, flag, hash_key, pause, status};
use super::conn::Conn;
use super::down::{Arrived, Downstream};
use super::hop::{Callee, Hop, Parties, Place};
use super::http2::{self, Links};
use super::observe::{Account, Entry, count_slow};
use super::route::Route;
use super::session::{self, Handler, Next};
use super::traced::Traced;
use crate::breaker::Room;
use crate::helper::{Moved, What};
use crate::in_flight::InFlight;
use crate::overload;
use crate::rejudge::{self, Audited, Denial};
use crate::stream::Stream;
use crate::tcp::Relayed;
use crate::worker::Worker;

/// Serves a connection of `unit` from `client` to `called`, which is an HTTP port of a service or of a unit of this host.
pub async fn serve(worker: Rc<Worker>, unit: Arc<Unit>, called: SocketAddr, client: IpAddr, stream: Stream) {
    serve_told(worker, unit, called, client, Conn::new(stream), None).await;
}

/// The same, when the client's first bytes have `told` what it speaks.
pub async fn serve_told(
    worker: Rc<Worker>,
    unit: Arc<Unit>,
    called: SocketAddr,
    client: IpAddr,
    conn: Conn,
    told: Option<Protocol>,
) {
    let draining = worker.shared.draining();
    match Calling::find(worker, unit.number, called, client, told) {
        Some(calling) => session::serve(conn, draining, Rc::new(calling), false).await,
        None => conn.abort(),
    }
}

/// Serves a connection that another worker has served before.
pub async fn serve_moved(worker: Rc<Worker>, moved: Moved, socket: TcpStream) {
    let conn = Conn::new(Stream::Tcp(socket));
    let draining = worker.shared.draining();
    match Calling::find(worker, moved.unit, moved.called, moved.client, moved.told) {
        Some(calling) => session::serve(conn, draining, Rc::new(calling), true).await,
        None => conn.linger().await, // between two requests, nothing is cut off
    }
}

/// Serves what is asked in the unit's name in this process, in HTTP/2. It goes on while the process drains: the requests
/// under way need it.
pub async fn serve_own(
    worker: Rc<Worker>,
    unit: Arc<Unit>,
    called: SocketAddr,
    client: IpAddr,
    io: impl AsyncRead + AsyncWrite + Unpin,
) {
    if let Some(calling) = Calling::find(worker, unit.number, called, client, Some(Protocol::Http2)) {
        http2::serve_over(io, None, pending(), Rc::new(calling)).await;
    }
}

/// A connection of a unit, and what its requests share.
struct Calling {
    worker: Rc<Worker>,
    number: u32,
    called: SocketAddr,
    client: IpAddr,
    told: Option<Protocol>,
    route: RefCell<Rc<Route>>,
    /// One for each pair of unit and peer.
    accounts: RefCell<Vec<Rc<Account>>>,
    /// Connections to applications of this host, between requests.
    kept: RefCell<Vec<(Arc<str>, u16, Conn)>>,
    /// Connections of HTTP/2, to wherever requests went.
    links: Links<Place>,
    /// Where the request that became a tunnel went by.
    tunnel: RefCell<Option<Tunnel>>,
    /// When it was counted last among those that have requests.
    looked: Cell<u32>,
}

/// A request that became a tunnel: its route, what that makes of it, the unit of this host to which it leads, and the room
/// that it takes.
type Tunnel = (Rc<Route>, Option<Rc<Taken>>, Option<Rc<Callee>>, Rc<Room>);

impl Handler for Calling {
    fn timeouts(&self) -> Timeouts {
        self.route.borrow().connector.config.timeouts
    }

    fn retired(&self) -> watch::Receiver<bool> {
        self.worker.shared.retired()
    }

    fn keep(&self, client: Conn, now: Instant) -> Option<Conn> {
        let Some(side) = &self.worker.side else {
            return Some(client);
        };
        side.look(now);
        let leaves = client.is_bare() && side.is_to_leave(&self.looked);
        if !leaves || self.worker.shared.is_ending() {
            return Some(client);
        }
        let moved = Moved {
            unit: self.number,
            called: self.called,
            client: self.client,
            told: self.told,
        };
        if let (Stream::Tcp(socket), _) = client.into_parts() {
            self.worker.send_on(socket, What::Moved(moved));
        }
        None
    }

    async fn request(&self, down: &mut impl Downstream, arrived: Arrived<'_>) -> Next {
        let Arrived { asked, begun, .. } = arrived;
        let Some(route) = self.refresh() else {
            let message = format!("there is no more HTTP at {}", self.called);
            let about = self.about(&self.route.borrow(), "".into());
            about.failed(&self.worker, begun, None, message);
            return Next::Abort;
        };
        let service = route.to.service().cloned();
        let deadline = service
            .as_ref()
            .and_then(|service| service.traffic.timeout)
            .map(|timeout| begun + timeout);
        let traced = Traced::begin(
            &self.worker,
            &route.connector.config,
            &route.connector.unit,
            asked.headers,
        );
        let audited = Audited::default();
        let mut call = Call {
            arrived,
            retries: service.as_ref().and_then(|service| service.traffic.retries),
            hedge: service.as_ref().and_then(|service| service.traffic.hedge),
            taken: None,
            flag: None,
            traced: &traced,
            attempt: None,
            route,
            deadline,
            tries: 0,
            tried: Vec::new(),
            key: hash_key(service.as_deref(), arrived, self.client),
            retry: RefCell::default(),
            room: RefCell::default(),
            service,
            endpoint: None,
            callee: None,
            audited: &audited,
        };
        let _admitted = match overload::admit(&self.worker, &call.route.connector.config) {
            Ok(admitted) => admitted,
            Err(fault) => return self.give_up(down, &call, None, fault, &fault.to_string()).await,
        };
        if let Some(next) = self.refused(down, &call).await {
            return next;
        }
        if let Some(next) = self.routed(down, &mut call).await {
            return next;
        }
        let next = self.carry(down, &mut call).await;
        if matches!(next, Next::Tunnel(_)) {
            let room = Rc::new(call.room.take());
            let tunnel = (call.route.clone(), call.taken.clone(), call.callee.take(), room);
            self.tunnel.replace(Some(tunnel));
        }
        self.mirror(down, &call);
        next
    }

    fn unreadable(&self, fault: Fault) {
        count_slow(&self.worker, fault);
        self.about(&self.route.borrow(), "".into()).failed(
            &self.worker,
            Instant::now(),
            Some(fault.flag()),
            fault.to_string(),
        );
    }

    async fn denied(&self, arrived: Arrived<'_>) -> Denial {
        let tunnel = self.tunnel.borrow().clone();
        match tunnel {
            Some((route, taken, callee, _)) => {
                let tell = |callee: &Account, decision: &Decision| callee.about.audited(&self.worker, decision);
                let audited = Audited::default();
                self.turned(
                    &route,
                    taken.as_deref(),
                    arrived.asked,
                    callee.as_deref().into_iter(),
                    &audited,
                    tell,
                )
                .await
            }
            None => pending().await,
        }
    }

    fn idle(&self) -> Option<Duration> {
        let tunnel = self.tunnel.borrow();
        tunnel.as_ref()?.0.to.service()?.traffic.idle_timeout
    }

    fn tunnelled(&self, begun: Instant, relayed: &Relayed) {
        if let Some(denial) = &relayed.denied {
            denial.tell(&self.worker, begun, relayed.sent, relayed.received);
            if denial.about.direction == "outbound" {
                return;
            }
        }
        let route = self.route.borrow().clone();
        self.about(&route, "".into())
            .relayed(&self.worker, begun, &route.decision.rule, relayed);
    }
}

impl Calling {
    /// `None`: there is no HTTP at what is `called`.
    fn find(
        worker: Rc<Worker>,
        number: u32,
        called: SocketAddr,
        client: IpAddr,
        told: Option<Protocol>,
    ) -> Option<Self> {
        let route = Route::find(&worker, number, called, client, told)?;
        Some(Self {
            worker,
            number,
            called,
            client,
            told,
            route: RefCell::new(Rc::new(route)),
            accounts: RefCell::default(),
            kept: RefCell::default(),
            links: Links::default(),
            tunnel: RefCell::default(),
            looked: Cell::default(),
        })
    }

    /// The route; found again when another config is in force. A unit that is not there any more may call nobody. `None`:
    /// there is no more HTTP where it led.
    fn refresh(&self) -> Option<Rc<Route>> {
        let shared = &self.worker.shared;
        let mut route = self.route.borrow_mut();
        if !shared.is_in_force(&route.connector.config) {
            if shared.config()?.unit_by_number(self.number).is_none() {
                Rc::make_mut(&mut route).decision = rejudge::unknown_unit();
                return Some(route.clone());
            }
            let found = Route::find(&self.worker, self.number, self.called, self.client, self.told)?;
            *route = Rc::new(found);
            self.accounts.borrow_mut().clear();
            self.kept.borrow_mut().clear();
            self.links.clear();
        }
        Some(route.clone())
    }

    async fn carry<'a>(&'a self, down: &mut impl Downstream, call: &mut Call<'a>) -> Next {
        if let Some(service) = &call.service {
            let mut loads = self.worker.loads.borrow_mut();
            let now = loads.clock(call.arrived.begun.into_std());
            loads.budget(&service.name).request(now);
        }
        let requests = |service| call.route.connector.take(service, Resource::Requests);
        let _request = match call.service.as_ref().map(requests) {
            Some(Err(error)) => {
                let fault = Fault::BreakerOpen;
                return self.give_up(down, call, None, fault, &error.to_string()).await;
            }
            Some(Ok(permit)) => permit,
            None => None,
        };
        let mut fresh = false;
        loop {
            let hop = match Hop::pick(call) {
                Ok(hop) => hop,
                Err(fault) => return self.give_up(down, call, None, fault, &fault.to_string()).await,
            };
            if !fresh {
                call.tries += 1;
            }
            call.attempt = Some(call.traced.attempt(&self.worker, call.arrived.begun));
            call.endpoint.clone_from(&hop.endpoint);
            let parties = match self.parties(call, &hop, fresh).await {
                Ok(parties) => parties,
                Err(refusal) => return self.refuse(down, call, refusal).await,
            };
            call.callee.clone_from(&parties.callee);
            let (connector, service) = (&call.route.connector, call.service.as_ref());
            let in_flight = InFlight::begin(connector, service, hop.endpoint.as_ref());
            let (parties, tried) = match call.may_hedge() {
                None => {
                    let tried = self.attempt(down, call, &hop, &parties, &in_flight, fresh).await;
                    (parties, tried)
                }
                Some(policy) => {
                    let leg = Leg {
                        hop: hop.clone(),
                        parties,
                        attempt: call.attempt,
                    };
                    let first = self.runner(call, leg, in_flight, fresh);
                    // Boxed: few services are hedged.
                    Box::pin(self.hedged(down, call, policy, first)).await
                }
            };
            let failure = match tried {
                Tried::Over(next) => return next,
                Tried::Stale => {
                    fresh = true;
                    call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
                    continue;
                }
                Tried::Again(failure) => failure,
                Tried::Failed { failure, .. } if call.may_retry(&self.worker, failure) => failure,
                Tried::Failed { failure, .. } if call.has_elsewhere(failure, hop.endpoint.as_ref()) => failure,
                Tried::Failed { fault, message, .. } => {
                    return self.give_up(down, call, Some(&parties), fault, &message).await;
                }
            };
            fresh = false;
            let message = describe(failure);
            let entry = call.entry(status(failure), &message);
            parties.caller.retried(&self.worker, &entry);
            let flag = flag(failure);
            parties.caller.tried(&self.worker, &Entry { flag, ..entry });
            parties.callee_ended(&self.worker, &entry);
            // What it held with the called unit is the next try's.
            drop(parties);
            call.callee = None;
            call.tried.extend(hop.endpoint.as_ref().map(|endpoint| endpoint.id));
            pause(call.backoff(self.worker.random()), call.deadline).await;
        }
    }

    async fn give_up(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        parties: Option<&Parties>,
        fault: Fault,
        message: &str,
    ) -> Next {
        let entry = Entry {
            flag: Some(fault.flag()),
            ..call.entry(fault.status(), message)
        };
        match parties {
            Some(parties) => parties.ended(&self.worker, &entry),
            None => self.account_of_nobody(&call.route).ended(&self.worker, &entry),
        }
        down.reply(fault, &fault.to_string()).await
    }
}
