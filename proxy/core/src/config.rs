//! Turns a snapshot into what the hot path reads: parsed, checked, indexed. Immutable once built.
//!
//! Law: nothing here is trusted to be sound because the agent made it; what does not fit is refused with a reason, and
//! the configuration in force stays.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use ipnet::IpNet;
use thiserror::Error;

use crate::glob::Glob;
use crate::limit::Limit;
use crate::overload::Overload;
use crate::revoked::Revoked;
use crate::route::Route;
use crate::snapshot::{self, Listeners, Marks, SNAPSHOT_VERSION, Snapshot};
use crate::trace::Formats;

/// Unit numbers live in the mark's low bits.
pub const MAX_UNIT_NUMBER: u32 = 4095;

/// Why a snapshot was refused. The text goes to the agent as it is.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Agent and proxy are not of one version.
    #[error("snapshot version {0}, this proxy reads {SNAPSHOT_VERSION}")]
    Version(u32),
    /// A value that is not one of its kind.
    #[error("{at}: {value:?} is not {expected}")]
    Bad {
        /// Where in the snapshot, e.g. `unit nginx.service`.
        at: String,
        /// What stood there.
        value: String,
        /// What should.
        expected: &'static str,
    },
    /// Two things claim what only one can have.
    #[error("{what} {value} is taken twice: by {first} and {second}")]
    Twice {
        /// Kind of thing, e.g. `port`.
        what: &'static str,
        /// The thing.
        value: String,
        /// Who had it.
        first: String,
        /// Who wants it too.
        second: String,
    },
}

/// Where a meshed unit's connection goes.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    /// A service by its VIP: any of its endpoints.
    Service {
        /// The service.
        service: &'a Arc<Service>,
        /// Its port that was called.
        port: &'a ServicePort,
    },
    /// A service by the address of one endpoint: that endpoint only.
    Endpoint {
        /// The service.
        service: &'a Arc<Service>,
        /// Its port whose target was called.
        port: &'a ServicePort,
        /// The endpoint.
        endpoint: &'a Arc<Endpoint>,
    },
    /// A declared port of a unit of this host, by an address of this host or loopback.
    LocalUnit {
        /// The unit.
        unit: &'a Arc<Unit>,
        /// Its port.
        port: &'a Port,
    },
    /// A VIP with a port that its service does not declare: refuse at once.
    UndeclaredPort(&'a Arc<Service>),
    /// Nothing of the mesh.
    Passthrough,
}

impl Destination<'_> {
    /// Does what is called there speak HTTP/1.1, so that requests follow each other one by one?
    pub fn is_http1(&self) -> bool {
        match self {
            Self::Service { port, .. } | Self::Endpoint { port, .. } => port.protocol == Protocol::Http,
            Self::LocalUnit { port, .. } => port.protocol == Protocol::Http,
            Self::UndeclaredPort(_) | Self::Passthrough => false,
        }
    }
}

/// The configuration in force.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Config {
    pub revision: String,
    pub trust_domain: String,
    pub host: Arc<str>,
    /// The zone of this host, empty where none is said.
    pub zone: Arc<str>,
    pub addresses: Vec<IpAddr>,
    pub marks: Marks,
    pub listeners: Listeners,
    pub timeouts: Timeouts,
    /// DER certificates.
    pub trust_bundle: Vec<Vec<u8>>,
    /// Whose certificates count for nothing.
    pub revoked: Arc<Revoked>,
    pub units: Vec<Arc<Unit>>,
    pub services: Vec<Arc<Service>>,
    /// How traces are told to whom is called.
    pub propagate: Formats,
    /// Where spans go; none: nothing is recorded.
    pub traces: Option<Arc<Traces>>,
    /// When requests are refused; `None`: never for the proxy's own sake.
    pub overload: Option<Overload>,
    /// How many series of counters there may be.
    pub max_series: usize,
    /// A series that was quiet for so long ends.
    pub expire_series: Duration,
    /// Which policies these are: set anew when it is put in force with others than those before ([`Config::follow`]).
    pub policies: u64,
    by_number: HashMap<u32, Arc<Unit>>,
    by_sni: HashMap<Arc<str>, Arc<Unit>>,
    by_unit: HashMap<Arc<str>, Arc<Unit>>,
    by_port: HashMap<u16, Arc<Unit>>,
    by_name: HashMap<Arc<str>, Arc<Service>>,
    by_vip: HashMap<IpAddr, Arc<Service>>,
    by_endpoint: HashMap<(IpAddr, u16), (Arc<Service>, usize, usize)>,
}

impl Config {
    /// Checks and indexes a snapshot.
    pub fn build(snapshot: Snapshot) -> Result<Self, ConfigError> {
        if snapshot.version != SNAPSHOT_VERSION {
            return Err(ConfigError::Version(snapshot.version));
        }
        let mut config = Self {
            addresses: addresses("snapshot", &snapshot.addresses)?,
            trust_bundle: certificates("trust_bundle", &snapshot.trust_bundle)?,
            revoked: Arc::new(Revoked::build(&snapshot.revoked)?),
            revision: snapshot.revision,
            trust_domain: snapshot.trust_domain,
            host: snapshot.host.into(),
            zone: snapshot.zone.into(),
            marks: snapshot.marks,
            listeners: snapshot.listeners,
            timeouts: compile::timeouts(snapshot.timeouts)?,
            overload: compile::overload(snapshot.overload),
            max_series: snapshot.metrics.max_series as usize,
            expire_series: Duration::from_millis(snapshot.metrics.expire_ms),
            units: Vec::with_capacity(snapshot.units.len()),
            services: Vec::with_capacity(snapshot.services.len()),
            propagate: compile::propagate(&snapshot.propagate)?,
            traces: snapshot.traces.map(compile::traces).transpose()?.map(Arc::new),
            policies: 0,
            by_number: HashMap::new(),
            by_sni: HashMap::new(),
            by_unit: HashMap::new(),
            by_port: HashMap::new(),
            by_name: HashMap::new(),
            by_vip: HashMap::new(),
            by_endpoint: HashMap::new(),
        };
        for unit in snapshot.units {
            config.add_unit(Arc::new(compile::unit(unit)?))?;
        }
        for service in snapshot.services {
            let service = compile::service(service, (&config.host, &config.zone), &config.by_unit)?;
            config.add_service(Arc::new(service))?;
        }
        Ok(config)
    }

    /// Checks and compiles one unit by itself.
    pub fn unit(unit: snapshot::Unit) -> Result<Unit, ConfigError> {
        compile::unit(unit)
    }

    /// Checks and compiles the routes of one service by themselves.
    pub fn routes(routes: &[snapshot::Route]) -> Result<Vec<Arc<Route>>, ConfigError> {
        routes::compile("routes", routes)
    }

    /// Takes the place of `old`: with the same policies what was judged by it stands, and what is known of limits,
    /// services and endpoints goes on. Endpoints that `old` had not joined now.
    pub fn follow(&mut self, old: &Self, now: Instant) {
        self.policies = old.policies + u64::from(self.units != old.units);
        for unit in &self.units {
            if let Some(before) = old.unit_by_name(&unit.unit) {
                Limit::follow(&unit.limits, &before.limits);
            }
        }
        for service in &self.services {
            let Some(before) = old.service_by_name(&service.name) else {
                continue;
            };
            service.circuit.get_or_init(|| before.circuit().clone());
            for endpoint in &service.endpoints {
                match before.endpoints.iter().find(|known| known.id == endpoint.id) {
                    Some(known) => {
                        endpoint.standing.get_or_init(|| known.standing().clone());
                        known.joined.get().inspect(|joined| _ = endpoint.joined.set(**joined));
                    }
                    None if before.endpoints.is_empty() => {}
                    None => _ = endpoint.joined.set(now),
                }
            }
        }
    }

    /// The unit with this number in its mark.
    pub fn unit_by_number(&self, number: u32) -> Option<&Arc<Unit>> {
        self.by_number.get(&number)
    }

    /// The unit that a socket's mark attests; `None` where the mark is not of an intercepted unit.
    pub fn unit_by_mark(&self, mark: u32) -> Option<&Arc<Unit>> {
        if mark & self.marks.outbound == 0 {
            return None;
        }
        self.unit_by_number(mark & self.marks.unit)
    }

    /// The unit of this host that a TLS client asks for (RFC 6066; names compare without case).
    pub fn unit_by_sni(&self, sni: &str) -> Option<&Arc<Unit>> {
        if sni.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.by_sni.get(sni.to_ascii_lowercase().as_str());
        }
        self.by_sni.get(sni)
    }

    /// The unit of this host of this name, e.g. `nginx.service`.
    pub fn unit_by_name(&self, name: &str) -> Option<&Arc<Unit>> {
        self.by_unit.get(name)
    }

    /// The unit of this host that serves this port.
    pub fn unit_by_port(&self, port: u16) -> Option<&Arc<Unit>> {
        self.by_port.get(&port)
    }

    /// The service of this name (no `.mesh`).
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.by_name.get(name)
    }

    /// Is this address one of this host's own, loopback included?
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// Where a connection to this address and port goes. IPv4-mapped addresses count as IPv4.
    pub fn destination(&self, address: IpAddr, port: u16) -> Destination<'_> {
        let address = address.to_canonical();
        if let Some(service) = self.by_vip.get(&address) {
            return match service.port(port) {
                Some(port) => Destination::Service { service, port },
                None => Destination::UndeclaredPort(service),
            };
        }
        if self.is_own_address(address) {
            return match self.by_port.get(&port).and_then(|unit| Some((unit, unit.port(port)?))) {
                Some((unit, port)) => Destination::LocalUnit { unit, port },
                None => Destination::Passthrough,
            };
        }
        match self.by_endpoint.get(&(address, port)) {
            Some((service, port, endpoint)) => Destination::Endpoint {
                service,
                port: &service.ports[*port],
                endpoint: &service.endpoints[*endpoint],
            },
            None => Destination::Passthrough,
        }
    }

    fn add_unit(&mut self, unit: Arc<Unit>) -> Result<(), ConfigError> {
        let name = &unit.unit;
        let holder = |unit: &Arc<Unit>| unit.unit.to_string();
        if let Some(first) = self.by_unit.insert(name.clone(), unit.clone()) {
            return Err(twice("unit", name, holder(&first), name));
        }
        if let Some(first) = self.by_number.insert(unit.number, unit.clone()) {
            return Err(twice("number", unit.number, holder(&first), name));
        }
        if let Some(first) = self.by_sni.insert(unit.sni.clone(), unit.clone()) {
            return Err(twice("server name", &unit.sni, holder(&first), name));
        }
        for port in &unit.ports {
            if let Some(first) = self.by_port.insert(port.port, unit.clone()) {
                return Err(twice("port", port.port, holder(&first), name));
            }
        }
        self.units.push(unit);
        Ok(())
    }

    fn add_service(&mut self, service: Arc<Service>) -> Result<(), ConfigError> {
        let name = &service.name;
        if let Some(first) = self.by_name.insert(name.clone(), service.clone()) {
            return Err(twice("service", name, &first.name, name));
        }
        for vip in &service.vips {
            if let Some(first) = self.by_vip.insert(*vip, service.clone()) {
                return Err(twice("VIP", vip, &first.name, name));
            }
        }
        for (endpoint_index, endpoint) in service.endpoints.iter().enumerate() {
            for (port_index, port) in service.ports.iter().enumerate() {
                for address in &endpoint.addresses {
                    // Other hosts say what they serve: two claims to one port are theirs to settle, the first one stands.
                    self.by_endpoint
                        .entry((*address, port.target))
                        .or_insert_with(|| (service.clone(), port_index, endpoint_index));
                }
            }
        }
        self.services.push(service);
        Ok(())
    }
}

pub(crate) fn bad(at: &str, value: impl Into<String>, expected: &'static str) -> ConfigError {
    ConfigError::Bad {
        at: at.to_owned(),
        value: value.into(),
        expected,
    }
}

fn twice(what: &'static str, value: impl ToString, first: impl ToString, second: impl ToString) -> ConfigError {
    ConfigError::Twice {
        what,
        value: value.to_string(),
        first: first.to_string(),
        second: second.to_string(),
    }
}

fn addresses(at: &str, texts: &[String]) -> Result<Vec<IpAddr>, ConfigError> {
    texts
        .iter()
        .map(|text| match text.parse::<IpAddr>() {
            Ok(address) => Ok(address.to_canonical()),
            Err(_) => Err(bad(at, text, "an IP address")),
        })
        .collect()
}

fn certificates(at: &str, texts: &[String]) -> Result<Vec<Vec<u8>>, ConfigError> {
    let decode = |text: &String| base64::engine::general_purpose::STANDARD.decode(text);
    texts
        .iter()
        .map(|text| decode(text).map_err(|_| bad(at, text, "base64")))
        .collect()
}

#[path = "config_compile.rs"]
mod compile;
#[path = "config_model.rs"]
mod model;
#[path = "config_routes.rs"]
mod routes;
#[path = "config_traffic.rs"]
mod traffic;

pub use model::*;
pub use traffic::*;

#[cfg(test)]
#[path = "config_tests.rs"]
pub(crate) mod tests;
