//! Where a connection's requests go, by one config: found again when another is in force.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::{self, Decision, Target};
use hostmesh_proxy_core::config::{Destination, Endpoint, Port, Protocol, Service, ServicePort, Unit};

use crate::connect::Connector;
use crate::worker::Worker;

/// What was called, and may the unit call it.
#[derive(Clone)]
pub struct Route {
    pub connector: Connector,
    pub to: To,
    pub decision: Decision,
    /// What was called, where a route of its policy leads here.
    pub via: Option<Rc<Self>>,
    /// What the connection has told that it speaks.
    told: Option<Protocol>,
}

#[derive(Clone)]
pub enum To {
    /// A service; `only`: by the address of this endpoint.
    Service {
        service: Arc<Service>,
        port: ServicePort,
        only: Option<Arc<Endpoint>>,
    },
    /// A unit of this host; the service says how it wants to be called.
    Unit {
        unit: Arc<Unit>,
        port: Port,
        service: Option<Arc<Service>>,
    },
}

impl Route {
    /// `None`: this is no HTTP port of anything, now.
    ///
    /// `told`: what the connection has told, where a port does not say what is spoken there.
    pub fn find(
        worker: &Rc<Worker>,
        number: u32,
        called: SocketAddr,
        client: IpAddr,
        told: Option<Protocol>,
    ) -> Option<Self> {
        let config = worker.shared.config()?;
        let unit = config.unit_by_number(number)?.clone();
        let to = match config.destination(called.ip(), called.port()) {
            Destination::Service { service, port } => To::Service {
                service: service.clone(),
                port: port.told(told),
                only: None,
            },
            Destination::Endpoint {
                service,
                port,
                endpoint,
            } => To::Service {
                service: service.clone(),
                port: port.told(told),
                only: Some(endpoint.at(called.ip())),
            },
            Destination::LocalUnit { unit, port } => {
                let service = config.service_by_name(&unit.service).cloned();
                To::Unit {
                    unit: unit.clone(),
                    port: port.told(told),
                    service,
                }
            }
            Destination::UndeclaredPort(_) | Destination::Passthrough => return None,
        };
        if !to.protocol().is_read() {
            return None;
        }
        let decision = to.judge(&unit, called.ip());
        let connector = Connector {
            worker: worker.clone(),
            config,
            unit,
            client,
        };
        Some(Self {
            connector,
            to,
            decision,
            via: None,
            told,
        })
    }

    /// What was called.
    pub fn called(self: &Rc<Self>) -> &Rc<Self> {
        self.via.as_ref().unwrap_or(self)
    }

    /// Where a route of the called service's policy leads that names another service: to its port of the number that was
    /// called, else to its only one. `None`: there is no such service or port, or no HTTP is spoken there.
    pub fn towards(self: &Rc<Self>, name: &str) -> Option<Rc<Self>> {
        let service = self.connector.config.service_by_name(name)?;
        let port = service.port(self.to.port()).or_else(|| service.only_port())?;
        let to = To::Service {
            service: service.clone(),
            port: port.told(self.told),
            only: None,
        };
        if !to.protocol().is_read() {
            return None;
        }
        Some(Rc::new(Self {
            decision: to.judge(&self.connector.unit, self.connector.client),
            connector: self.connector.clone(),
            to,
            via: Some(self.clone()),
            told: self.told,
        }))
    }
}

impl To {
    /// May the unit call it?
    pub fn judge(&self, unit: &Unit, address: IpAddr) -> Decision {
        let target = Target {
            port: self.port(),
            service: Some(self.service_name()),
            hosts: &[],
            address: Some(address),
        };
        authorize::outbound(unit, &target)
    }

    /// What is spoken on the port that was called.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Service { port, .. } => port.protocol,
            Self::Unit { port, .. } => port.protocol,
        }
    }

    /// The port that was called.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } => port.port,
            Self::Unit { port, .. } => port.port,
        }
    }

    /// The service, where it is known; a unit of this host may be in no catalog yet.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Unit { service, .. } => service.as_ref(),
        }
    }

    pub fn service_name(&self) -> &Arc<str> {
        match self {
            Self::Service { service, .. } => &service.name,
            Self::Unit { unit, .. } => &unit.service,
        }
    }
}
