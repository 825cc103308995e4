//! Turns connections of meshed units into connections to what they called.
//!
//! Law: the kernel says who calls (SO_MARK) and whom (the socket's own address); the unit's policy says whether. What is
//! refused or cannot be reached is reset at once.

mod watched;

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::RULE_UNKNOWN_UNIT;
use hostmesh_proxy_core::balance::hash::source_key;
use hostmesh_proxy_core::config::{Balance, Destination, Endpoint, HashOn, Port, Service, ServicePort, Unit};
use hostmesh_proxy_core::flag::Flag;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::breaker::Room;
use crate::connect::{ConnectError, Connector};
use crate::dns;
use crate::events::Event;
use crate::http::{self, inbound::Who};
use crate::in_flight::InFlight;
use crate::listener::Kind;
use crate::rejudge::{Asked, Opened};
use crate::sockopt;
use crate::stream::Stream;
use crate::tcp;
use crate::traces::connection::{Opaque, Opening};
use crate::worker::{About, Worker};

/// A passed-through destination gets as long as Linux itself would give it (tcp_syn_retries 6), near enough.
const PASSTHROUGH: std::time::Duration = std::time::Duration::from_secs(120);

/// Names over TCP (RFC 7766).
const DNS: u16 = 53;

/// Where no service is called.
const NO_SERVICE: &str = "";

/// Serves an accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, client: SocketAddr) {
    let Some(config) = worker.shared.config() else {
        return sockopt::abort(tcp);
    };
    let (Ok(mark), Ok(called)) = (sockopt::mark(&tcp), tcp.local_addr()) else {
        return sockopt::abort(tcp);
    };
    let called = canonical(called);
    let Some(unit) = config.unit_by_mark(mark).cloned() else {
        worker.stats.denied(RULE_UNKNOWN_UNIT);
        let message = format!("connection to {called} with mark {mark:#x}, which is no unit's");
        worker
            .shared
            .events
            .emit(Event::denied("", "outbound", RULE_UNKNOWN_UNIT, message));
        return sockopt::abort(tcp);
    };
    if called.ip().is_loopback() && called.port() == config.listeners.outbound || sockopt::relayed(&tcp).is_err() {
        return sockopt::abort(tcp);
    }
    // HTTP/1.1 may move between any two requests; anything else stays where it is served first.
    let destination = config.destination(called.ip(), called.port());
    let kept = if destination.is_http1() {
        Some(tcp)
    } else {
        worker.pass(Kind::Outbound, tcp, client)
    };
    let Some(tcp) = kept else { return };
    let connector = Connector {
        worker,
        config: config.clone(),
        unit,
        client: client.ip().to_canonical(),
    };
    carry(connector, called, destination, tcp).await;
}

/// Carries a connection of a unit to its end. `destination`: of what was `called`, in the connector's config.
pub async fn carry(connector: Connector, called: SocketAddr, destination: Destination<'_>, tcp: TcpStream) {
    let call = Outgoing {
        connector,
        called,
        begun: Instant::now(),
    };
    match destination {
        Destination::Service { port, .. } | Destination::Endpoint { port, .. } if port.protocol.is_read() => {
            call.http(tcp).await;
        }
        Destination::LocalUnit { port, .. } if port.protocol.is_read() => call.http(tcp).await,
        // Boxed: a connection that speaks HTTP, open and idle for the most part, needs no room for what others do.
        _ => Box::pin(call.other(tcp, destination)).await,
    }
}

/// IPv4 as IPv4; a link-local IPv6 address keeps its link.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Where a connection has come to. The room is its own as long as it lasts.
struct Reached {
    endpoint: Arc<Endpoint>,
    stream: Stream,
    room: Room,
}

/// Why it has come nowhere, with the identity that was called last. `None`: it was refused here, and is recorded.
type Unreached = Option<(Arc<str>, ConnectError)>;

/// Counts and records a connection that has come nowhere.
fn unreached(opened: &Opened, about: About, error: Unreached) {
    if let Some((peer, error)) = error {
        let message = format!("{}:{}: {error}", about.service, about.port);
        let flag = error.fault().flag();
        opened.failed(&About { peer, ..about }, flag, message);
    }
}

/// One connection of a unit.
struct Outgoing {
    connector: Connector,
    called: SocketAddr,
    begun: Instant,
}

impl Outgoing {
    fn about(&self, peer: &str, service: &str, port: u16, protocol: &'static str) -> About {
        About {
            unit: self.connector.unit.clone(),
            direction: "outbound",
            peer: peer.into(),
            service: service.into(),
            port,
            protocol,
            client: self.connector.client,
            sni: None,
            route: None,
        }
    }

    /// Asks whether the unit may call this. `None`: it was refused, counted and recorded.
    fn judge(&self, about: &About) -> Option<(Opened, Arc<str>)> {
        let Connector {
            worker, config, unit, ..
        } = &self.connector;
        let mut opened = Opened::new(worker, config, self.begun);
        opened.trace = Opaque::begin(worker, unit, None);
        let address = self.called.ip();
        let hosts = if about.service.is_empty() {
            worker.shared.lookups.names(unit, address)
        } else {
            Vec::new()
        };
        let rule = opened.ask(config, about.clone(), Asked::Call { address, hosts })?;
        Some((opened, rule))
    }

    /// What speaks no HTTP, or has not told.
    async fn other(self, tcp: TcpStream, destination: Destination<'_>) {
        let called = self.called;
        match destination {
            Destination::Service { service, port } if port.protocol.is_watched() => {
                self.watched(tcp, service, *port, None).await;
            }
            Destination::Service { service, port } => self.service(tcp, service, *port, None).await,
            Destination::Endpoint {
                service,
                port,
                endpoint,
            } => {
                let endpoint = endpoint.at(called.ip());
                if port.protocol.is_watched() {
                    return self.watched(tcp, service, *port, Some(&endpoint)).await;
                }
                self.service(tcp, service, *port, Some(&endpoint)).await;
            }
            Destination::LocalUnit { unit, port } if port.protocol.is_watched() => {
                self.watched_unit(tcp, unit, port).await;
            }
            Destination::LocalUnit { unit, port } => self.local_unit(tcp, unit, port).await,
            Destination::UndeclaredPort(service) => {
                let message = format!("{} has no port {}", service.name, called.port());
                self.about("", &service.name, called.port(), "tcp").failed(
                    &self.connector.worker,
                    self.begun,
                    Some(Flag::NoRoute),
                    message,
                );
                sockopt::abort(tcp);
            }
            Destination::Passthrough if called.port() == DNS => self.names(tcp).await,
            Destination::Passthrough => self.passthrough(tcp).await,
        }
    }

    async fn service(self, tcp: TcpStream, service: &Arc<Service>, port: ServicePort, only: Option<&Arc<Endpoint>>) {
        let about = self.about("", &service.name, port.port, port.protocol.as_str());
        let Some((mut opened, rule)) = self.judge(&about) else {
            return sockopt::abort(tcp);
        };
        match self.reach(&mut opened, service, port, only).await {
            Ok(Reached {
                endpoint,
                stream,
                room: _room,
            }) => {
                let about = About {
                    peer: endpoint.spiffe_id.clone(),
                    ..about
                };
                let _in_flight = InFlight::begin(&self.connector, Some(service), Some(&endpoint));
                let relayed = tcp::relay(tcp, stream, service.traffic.idle_timeout, pin!(opened.denied())).await;
                opened.ended(&about, &rule, &relayed);
            }
            Err(error) => {
                unreached(&opened, about, error);
                sockopt::abort(tcp);
            }
        }
    }

    /// A stream to one of the service's endpoints, where its policy leaves room for one.
    async fn reach(
        &self,
        opened: &mut Opened,
        service: &Arc<Service>,
        port: ServicePort,
        only: Option<&Arc<Endpoint>>,
    ) -> Result<Reached, Unreached> {
        let room = self.connector.room_at_once(service);
        let mut room = room.map_err(|error| Some(("".into(), error)))?;
        let (endpoint, stream) = self.first_reached(opened, service, port, only).await?;
        room.connected();
        Ok(Reached { endpoint, stream, room })
    }

    /// Tries one endpoint after the other, each once.
    async fn first_reached(
        &self,
        opened: &mut Opened,
        service: &Arc<Service>,
        port: ServicePort,
        only: Option<&Arc<Endpoint>>,
    ) -> Result<(Arc<Endpoint>, Stream), Unreached> {
        let mut tried = Vec::new();
        let mut last = (
            Arc::from(""),
            ConnectError::Unreachable("the service has no endpoint".into()),
        );
        let key = match &service.traffic.balance {
            Balance::ConsistentHash(by) if by.on == HashOn::Source => Some(source_key(self.connector.client)),
            _ => None,
        };
        for _ in 0..service.endpoints.len() {
            let picked = only.cloned().or_else(|| self.connector.pick(service, &tried, key).ok());
            let Some(endpoint) = picked.filter(|endpoint| !tried.contains(&endpoint.id)) else {
                break;
            };
            if let Some(unit) = &endpoint.local
                && !self.is_let_in(opened, unit, &service.name, port.target)
            {
                return Err(None);
            }
            let opening = Opening {
                traceparent: opened.trace.as_ref().map(Opaque::traceparent),
                ..Opening::default()
            };
            let connect = self.connector.connect(&endpoint, port.target, true, &opening);
            let connecting = self.connector.in_time(service, connect);
            let connected = opened.unless_denied(connecting).await.ok_or(None)?;
            if let (Some(trace), Some(steps)) = (&opened.trace, opening.dialed.get()) {
                trace.dialed(&self.connector.worker, &self.connector.unit, steps);
            }
            if !matches!(connected, Err(ConnectError::Lacking(_))) {
                let failed = matches!(connected, Err(ConnectError::Unreachable(_)));
                self.connector.judge(service, &endpoint, failed);
            }
            match connected {
                Ok(stream) => return Ok((endpoint, stream)),
                Err(denied @ ConnectError::Denied) => return Err(Some((endpoint.spiffe_id.clone(), denied))),
                Err(error) => last = (endpoint.spiffe_id.clone(), error),
            }
            if endpoint.local.is_some() {
                opened.withdraw();
            }
            tried.push(endpoint.id);
        }
        Err(Some(last))
    }

    /// The other side's policy, where the other side is a unit of this host: one pass, both policies.
    fn is_let_in(&self, opened: &mut Opened, unit: &Arc<Unit>, service: &str, port: u16) -> bool {
        let caller = &self.connector.unit.spiffe_id;
        let about = About {
            unit: unit.clone(),
            direction: "local",
            peer: caller.clone(),
            service: service.into(),
            port,
            protocol: unit.port(port).map_or("tcp", |port| port.protocol.as_str()),
            client: self.connector.client,
            sni: None,
            route: None,
        };
        let who = Who::Identity(caller.clone());
        opened.ask(&self.connector.config, about, Asked::ComeIn(who)).is_some()
    }

    async fn local_unit(self, tcp: TcpStream, unit: &Arc<Unit>, port: &Port) {
        let about = self.about(&unit.spiffe_id, &unit.service, port.port, port.protocol.as_str());
        let Some((mut opened, rule)) = self.judge(&about) else {
            return sockopt::abort(tcp);
        };
        if !self.is_let_in(&mut opened, unit, &unit.service, port.port) {
            return sockopt::abort(tcp);
        }
        match opened.unless_denied(self.connector.deliver(unit, port)).await {
            Some(Ok(stream)) => {
                let relayed = tcp::relay(tcp, stream, None, pin!(opened.denied())).await;
                opened.ended(&about, &rule, &relayed);
            }
            Some(Err(error)) => {
                opened.failed(&about, Flag::ConnectFailure, error.to_string());
                sockopt::abort(tcp);
            }
            None => sockopt::abort(tcp),
        }
    }

    /// Judged request by request.
    async fn http(self, tcp: TcpStream) {
        let Connector {
            worker, unit, client, ..
        } = self.connector;
        http::outbound::serve(worker, unit, self.called, client, Stream::Tcp(tcp)).await;
    }

    /// Names are part of the mesh: no policy hides them. Whom the others are asked of, `[outbound]` limits there.
    async fn names(self, tcp: TcpStream) {
        let Connector { worker, unit, .. } = &self.connector;
        if let Err(error) = dns::serve_tcp(tcp, self.called, unit, &worker.shared, &worker.stats).await {
            let about = self.about("passthrough", NO_SERVICE, DNS, "dns");
            about.failed(worker, self.begun, None, format!("names from {}: {error}", self.called));
        }
    }

    async fn passthrough(self, tcp: TcpStream) {
        let about = self.about("passthrough", NO_SERVICE, self.called.port(), "tcp");
        let Some((opened, rule)) = self.judge(&about) else {
            return sockopt::abort(tcp);
        };
        let connect = sockopt::connect(self.called, self.connector.config.marks.proxy, None);
        let Some(reached) = opened.unless_denied(timeout(PASSTHROUGH, connect)).await else {
            return sockopt::abort(tcp);
        };
        match reached.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                let relayed = tcp::relay(tcp, Stream::Tcp(stream), None, pin!(opened.denied())).await;
                opened.ended(&about, &rule, &relayed);
            }
            Err(error) => {
                opened.failed(&about, Flag::ConnectFailure, format!("{}: {error}", self.called));
                sockopt::abort(tcp);
            }
        }
    }
}
