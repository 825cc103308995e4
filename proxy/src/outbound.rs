//! Turns connections of meshed units into connections to what they called.
//!
//! Law: the kernel says who calls (SO_MARK) and whom (the socket's own address); the unit's policy says whether. What is
//! refused or cannot be reached is reset at once.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::{self, Caller, RULE_UNKNOWN_UNIT, Target, Verdict};
use hostmesh_proxy_core::config::{Destination, Endpoint, Port, Protocol, Service, ServicePort, Unit};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::connect::{ConnectError, Connector};
use crate::dns;
use crate::events::Event;
use crate::http;
use crate::sockopt;
use crate::stream::Stream;
use crate::tcp;
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
    let client = client.ip().to_canonical();
    let connector = Connector {
        worker,
        config: config.clone(),
        unit,
        client,
    };
    let call = Outgoing {
        connector,
        called,
        begun: Instant::now(),
    };
    match config.destination(called.ip(), called.port()) {
        Destination::Service { port, .. } | Destination::Endpoint { port, .. } if port.protocol == Protocol::Http => {
            call.http(tcp).await;
        }
        Destination::LocalUnit { port, .. } if port.protocol == Protocol::Http => call.http(tcp).await,
        Destination::Service { service, port } => call.service(tcp, service, *port, None).await,
        Destination::Endpoint {
            service,
            port,
            endpoint,
        } => {
            let endpoint = endpoint.at(called.ip());
            call.service(tcp, service, *port, Some(&endpoint)).await;
        }
        Destination::LocalUnit { unit, port } => call.local_unit(tcp, unit, port).await,
        Destination::UndeclaredPort(service) => {
            let message = format!("{} has no port {}", service.name, called.port());
            call.about("", &service.name, called.port(), "tcp")
                .failed(&call.connector.worker, call.begun, message);
            sockopt::abort(tcp);
        }
        Destination::Passthrough if called.port() == DNS => call.names(tcp).await,
        Destination::Passthrough => call.passthrough(tcp).await,
    }
}

/// IPv4 as IPv4; a link-local IPv6 address keeps its link.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
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
        }
    }

    /// The rule that lets the unit call this, or `None` when it was refused, counted and recorded.
    fn judge(&self, about: &About, service: Option<&str>) -> Option<Arc<str>> {
        let unit = &self.connector.unit;
        let hosts = match service {
            Some(_) => Vec::new(),
            None => self.connector.worker.shared.lookups.names(unit, self.called.ip()),
        };
        let target = Target {
            port: about.port,
            service,
            hosts: &hosts,
            address: Some(self.called.ip()),
        };
        let decision = authorize::outbound(unit, &target);
        if decision.verdict.passes() {
            return Some(decision.rule);
        }
        let what = service.map_or_else(|| self.called.to_string(), |name| format!("{name}:{}", about.port));
        let message = format!("{} may not call {what}", unit.unit);
        about.denied(&self.connector.worker, &decision.rule, message);
        None
    }

    async fn service(self, tcp: TcpStream, service: &Arc<Service>, port: ServicePort, only: Option<&Arc<Endpoint>>) {
        let about = self.about("", &service.name, port.port, port.protocol.as_str());
        let Some(rule) = self.judge(&about, Some(&service.name)) else {
            return sockopt::abort(tcp);
        };
        match self.first_reached(service, port, only).await {
            Ok((endpoint, stream)) => {
                let about = About {
                    peer: endpoint.spiffe_id.clone(),
                    ..about
                };
                let worker = &self.connector.worker;
                worker.loads.borrow_mut().begin(&endpoint);
                let relayed = tcp::relay(tcp, stream).await;
                worker.loads.borrow_mut().end(endpoint.id);
                about.relayed(worker, self.begun, &rule, &relayed);
            }
            Err(error) => {
                if let Some((peer, error)) = error {
                    let message = format!("{}:{}: {error}", service.name, port.port);
                    About { peer, ..about }.failed(&self.connector.worker, self.begun, message);
                }
                sockopt::abort(tcp);
            }
        }
    }

    /// Tries one endpoint after the other, each once. An error comes with the identity that was called last; without one
    /// it was refused here, and is recorded.
    async fn first_reached(
        &self,
        service: &Service,
        port: ServicePort,
        only: Option<&Arc<Endpoint>>,
    ) -> Result<(Arc<Endpoint>, Stream), Option<(Arc<str>, ConnectError)>> {
        let mut tried = Vec::new();
        let mut last = (
            Arc::from(""),
            ConnectError::Unreachable("the service has no endpoint".into()),
        );
        for _ in 0..service.endpoints.len() {
            let picked = only.cloned().or_else(|| self.connector.pick(service, &tried));
            let Some(endpoint) = picked.filter(|endpoint| !tried.contains(&endpoint.id)) else {
                break;
            };
            if let Some(unit) = &endpoint.local
                && !self.is_let_in(unit, &service.name, port.target)
            {
                return Err(None);
            }
            match self.connector.connect(&endpoint, port.target, true).await {
                Ok(stream) => return Ok((endpoint, stream)),
                Err(denied @ ConnectError::Denied) => return Err(Some((endpoint.spiffe_id.clone(), denied))),
                Err(error) => last = (endpoint.spiffe_id.clone(), error),
            }
            tried.push(endpoint.id);
        }
        Err(Some(last))
    }

    /// The other side's policy, where the other side is a unit of this host: one pass, both policies.
    fn is_let_in(&self, unit: &Arc<Unit>, service: &str, port: u16) -> bool {
        let caller = &self.connector.unit.spiffe_id;
        let Some(decision) = authorize::connection(unit, &Caller::Identity(caller), port) else {
            return false;
        };
        let protocol = unit.port(port).map_or("tcp", |port| port.protocol.as_str());
        let about = About {
            unit: unit.clone(),
            direction: "local",
            peer: caller.clone(),
            service: service.into(),
            port,
            protocol,
            client: self.connector.client,
        };
        let worker = &self.connector.worker;
        match decision.verdict {
            Verdict::Allow => {}
            Verdict::AuditDeny => about.audited(worker, &decision.rule),
            Verdict::Deny | Verdict::BadPath => {
                let message = format!("{} may not call {service}:{port}", self.connector.unit.unit);
                about.denied(worker, &decision.rule, message);
            }
        }
        decision.verdict.passes()
    }

    async fn local_unit(self, tcp: TcpStream, unit: &Arc<Unit>, port: &Port) {
        let about = self.about(&unit.spiffe_id, &unit.service, port.port, port.protocol.as_str());
        let Some(rule) = self.judge(&about, Some(&unit.service)) else {
            return sockopt::abort(tcp);
        };
        if !self.is_let_in(unit, &unit.service, port.port) {
            return sockopt::abort(tcp);
        }
        let worker = &self.connector.worker;
        match self.connector.deliver(unit, port).await {
            Ok(stream) => about.relayed(worker, self.begun, &rule, &tcp::relay(tcp, stream).await),
            Err(error) => {
                about.failed(worker, self.begun, error.to_string());
                sockopt::abort(tcp);
            }
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
            about.failed(worker, self.begun, format!("names from {}: {error}", self.called));
        }
    }

    async fn passthrough(self, tcp: TcpStream) {
        let about = self.about("passthrough", NO_SERVICE, self.called.port(), "tcp");
        let Some(rule) = self.judge(&about, None) else {
            return sockopt::abort(tcp);
        };
        let worker = &self.connector.worker;
        let reached = timeout(
            PASSTHROUGH,
            sockopt::connect(self.called, self.connector.config.marks.proxy, None),
        )
        .await;
        match reached.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                let relayed = tcp::relay(tcp, Stream::Tcp(stream)).await;
                about.relayed(worker, self.begun, &rule, &relayed);
            }
            Err(error) => {
                about.failed(worker, self.begun, format!("{}: {error}", self.called));
                sockopt::abort(tcp);
            }
        }
    }
}
