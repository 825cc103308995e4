//! Connections of a unit to ports on which each connection tells what is spoken, or for which server of TLS it asks.
//!
//! The connection to the endpoint is opened at once, as one of bytes. When the client turns out to speak HTTP it is left to
//! its requests; when a route leads elsewhere by the server's name, another is opened in its place.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::config::{Endpoint, Port, Protocol, Service, ServicePort, Unit};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::route::choose_by_name;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Outgoing, Reached, unreached};
use crate::breaker::Room;
use crate::http::{self, conn::Conn, inbound::Who};
use crate::in_flight::InFlight;
use crate::opening::{self, Seen, Told};
use crate::rejudge::{Asked, Opened, lets_in_requests_only};
use crate::sockopt;
use crate::stream::Stream;
use crate::worker::About;

/// A connection on its way.
struct Watched {
    call: Outgoing,
    opened: Opened,
    client: Conn,
    /// Where it is to go by now.
    service: Arc<Service>,
    port: ServicePort,
    only: Option<Arc<Endpoint>>,
    about: About,
    /// The rule that lets the unit call that.
    rule: Arc<str>,
}

/// What it has reached.
struct Up {
    endpoint: Arc<Endpoint>,
    server: Conn,
    _room: Room,
}

impl Outgoing {
    /// To a service; `only`: by the address of this endpoint.
    pub(super) async fn watched(
        self,
        tcp: TcpStream,
        service: &Arc<Service>,
        port: ServicePort,
        only: Option<&Arc<Endpoint>>,
    ) {
        let about = self.about("", &service.name, port.port, port.protocol.as_str());
        let Some((mut opened, rule)) = self.judge(&about) else {
            return sockopt::abort(tcp);
        };
        if port.protocol == Protocol::Auto {
            opened.wait_until_told();
        }
        let watched = Watched {
            call: self,
            opened,
            client: Conn::new(Stream::Tcp(tcp)),
            service: service.clone(),
            port,
            only: only.cloned(),
            about,
            rule,
        };
        watched.serve().await;
    }

    /// To a unit of this host, called by an address.
    pub(super) async fn watched_unit(self, tcp: TcpStream, unit: &Arc<Unit>, port: &Port) {
        let mut about = self.about(&unit.spiffe_id, &unit.service, port.port, port.protocol.as_str());
        let Some((mut opened, rule)) = self.judge(&about) else {
            return sockopt::abort(tcp);
        };
        let mut client = Conn::new(Stream::Tcp(tcp));
        if port.protocol == Protocol::Auto {
            opened.wait_until_told();
        }
        let mut server = None;
        if !self.lets_in_requests_only(unit, port.port, port.protocol) {
            server = match self.deliver_watched(&mut opened, unit, port, &about).await {
                Some(server) => Some(server),
                None => return client.abort(),
            };
        }
        let limit = self.connector.config.timeouts.head;
        let watching = opening::watch(&mut client, server.as_mut(), port.protocol, limit);
        let Some(seen) = told(&opened, &about, watching, None).await else {
            return client.abort();
        };
        if let Told::Http(protocol) = seen.told {
            drop(opened);
            return self.requests(client, protocol).await;
        }
        (about.protocol, about.sni) = (seen.told.protocol().as_str(), seen.told.sni());
        if !opened.told(&self.connector.config, &seen.told) {
            return client.abort();
        }
        let server = match server {
            Some(server) => Some(server),
            None => self.deliver_watched(&mut opened, unit, port, &about).await,
        };
        let Some(server) = server else {
            return client.abort();
        };
        let relayed = opening::relay(client, server, seen.sent, None, pin!(opened.denied())).await;
        opened.ended(&about, &rule, &relayed);
    }

    /// The application of a unit of this host, if its policy lets anything in. `None`: that was told.
    async fn deliver_watched(&self, opened: &mut Opened, unit: &Arc<Unit>, port: &Port, about: &About) -> Option<Conn> {
        if !self.is_let_in(opened, unit, &unit.service, port.port) {
            return None;
        }
        match opened.unless_denied(self.connector.deliver(unit, port)).await? {
            Ok(stream) => Some(Conn::new(stream)),
            Err(error) => {
                opened.failed(about, Flag::ConnectFailure, error.to_string());
                None
            }
        }
    }

    /// Does the policy of a unit of this host refuse what is no HTTP, while it may let in requests?
    fn lets_in_requests_only(&self, unit: &Unit, port: u16, protocol: Protocol) -> bool {
        let who = Who::Identity(self.connector.unit.spiffe_id.clone());
        protocol == Protocol::Auto && lets_in_requests_only(unit, &who, port)
    }

    /// Judged request by request.
    async fn requests(self, client: Conn, protocol: Protocol) {
        let from = self.connector.client;
        let (worker, unit) = (self.connector.worker, self.connector.unit);
        http::outbound::serve_told(worker, unit, self.called, from, client, Some(protocol)).await;
    }
}

impl Watched {
    async fn serve(mut self) {
        let mut up = None;
        if !self.waits_for_client() {
            up = self.reach().await;
            if up.is_none() {
                return self.client.abort();
            }
        }
        let Some(Seen { told, mut sent }) = self.see(up.as_mut()).await else {
            return self.client.abort();
        };
        (self.about.protocol, self.about.sni) = (told.protocol().as_str(), told.sni());
        if let Told::Http(protocol) = told {
            drop(self.opened); // its requests are judged and counted by themselves
            // The stream to the endpoint serves its first request.
            if let Some(Up { endpoint, server, .. }) = up.filter(|_| sent == 0)
                && let Some(server) = server.if_clean()
            {
                let stream = server.into_parts().0;
                self.call.connector.release(&endpoint, self.port.target, stream);
            }
            return self.call.requests(self.client, protocol).await;
        }
        if let Told::Tls(name) = &told {
            match self.follow(name, up.as_ref()) {
                Some(false) => {}
                Some(true) => {
                    sent = 0;
                    up.take().into_iter().for_each(|up| up.server.abort());
                }
                None => return self.client.abort(),
            }
        }
        if !self.opened.told(&self.call.connector.config, &told) {
            return self.client.abort();
        }
        if up.is_none() {
            up = self.reach().await;
        }
        match up {
            Some(up) => self.carry(up, sent).await,
            None => self.client.abort(),
        }
    }

    /// Is there nothing to connect to before the client has spoken? So it is where a route leads by the name that it asks
    /// for, as it does first of all in TLS; and on this host where a policy lets in nothing but requests.
    fn waits_for_client(&self) -> bool {
        let local = |endpoint: &Arc<Endpoint>| {
            let unit = endpoint.local.as_ref();
            let (target, protocol) = (self.port.target, self.port.protocol);
            unit.is_some_and(|unit| self.call.lets_in_requests_only(unit, target, protocol))
        };
        let is_routed = || self.service.traffic.routes.iter().any(|route| route.fits.sni.is_some());
        match &self.only {
            Some(only) => local(only),
            None => self.port.protocol == Protocol::Tls && is_routed() || self.service.endpoints.iter().any(local),
        }
    }

    /// `None`: it has come nowhere, and that was told.
    async fn reach(&mut self) -> Option<Up> {
        let (service, only) = (self.service.clone(), self.only.clone());
        let reached = self.call.reach(&mut self.opened, &service, self.port, only.as_ref());
        match reached.await {
            Ok(Reached { endpoint, stream, room }) => Some(Up {
                endpoint,
                server: Conn::new(stream),
                _room: room,
            }),
            Err(error) => {
                unreached(&self.opened, self.about.clone(), error);
                None
            }
        }
    }

    async fn see(&mut self, up: Option<&mut Up>) -> Option<Seen> {
        let limit = self.call.connector.config.timeouts.head;
        let server = up.map(|up| &mut up.server);
        let watching = opening::watch(&mut self.client, server, self.port.protocol, limit);
        told(&self.opened, &self.about, watching, self.service.traffic.idle_timeout).await
    }

    /// Aims where a route leads for this name, if one does: is that elsewhere than where it went? `None`: it leads nowhere,
    /// or the unit may not call that; which was told.
    fn follow(&mut self, name: &str, up: Option<&Up>) -> Option<bool> {
        let connector = &self.call.connector;
        let (service, worker) = (self.service.clone(), &connector.worker);
        let routes = &service.traffic.routes;
        let chosen = choose_by_name(routes, name, connector.client, || worker.random());
        let Some((route, to)) = chosen.filter(|_| self.only.is_none()) else {
            return Some(false);
        };
        self.about.route = Some(route.name.clone());
        if **to == *service.name {
            return Some(false);
        }
        if up.is_some_and(|up| up.endpoint.local.is_some()) {
            self.opened.withdraw();
        }
        let other = connector.config.service_by_name(to);
        let port = other.and_then(|other| other.port(self.port.port).or_else(|| other.only_port()));
        let Some((other, port)) = other.zip(port.copied()).filter(|(_, port)| !port.protocol.is_read()) else {
            let fault = Fault::NoRoute;
            self.opened.failed(&self.about, fault.flag(), fault.to_string());
            return None;
        };
        self.about.service = other.name.clone();
        self.about.port = port.port;
        let asked = Asked::Call {
            address: self.call.called.ip(),
            hosts: Vec::new(),
        };
        self.rule = self.opened.ask(&connector.config, self.about.clone(), asked)?;
        (self.service, self.port) = (other.clone(), port);
        Some(true)
    }

    async fn carry(self, up: Up, sent: usize) {
        let about = About {
            peer: up.endpoint.spiffe_id.clone(),
            ..self.about
        };
        let _in_flight = InFlight::begin(&self.call.connector, Some(&self.service), Some(&up.endpoint));
        let idle = self.service.traffic.idle_timeout;
        let relayed = opening::relay(self.client, up.server, sent, idle, pin!(self.opened.denied())).await;
        self.opened.ended(&about, &self.rule, &relayed);
    }
}

/// What was seen. `None`: it broke, was denied, or nothing moved for the time of `idle`; which was told.
async fn told(
    opened: &Opened,
    about: &About,
    watching: impl Future<Output = io::Result<Seen>>,
    idle: Option<Duration>,
) -> Option<Seen> {
    let in_time = async {
        match idle {
            Some(idle) => timeout(idle, watching).await.unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nothing moved for idle_timeout",
                ))
            }),
            None => watching.await,
        }
    };
    match opened.unless_denied(in_time).await? {
        Ok(seen) => Some(seen),
        Err(error) => {
            opened.failed(about, Flag::Reset, format!("connection broke off: {error}"));
            None
        }
    }
}
