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
    pub fn find(worker: &Rc<Worker>, number: u32, called: SocketAddr, client: IpAddr) -> Option<Self> {
        let config = worker.shared.config()?;
        let unit = config.unit_by_number(number)?.clone();
        let to = match config.destination(called.ip(), called.port()) {
            Destination::Service { service, port } => To::Service {
                service: service.clone(),
                port: *port,
                only: None,
            },
            Destination::Endpoint {
                service,
                port,
                endpoint,
            } => To::Service {
                service: service.clone(),
                port: *port,
                only: Some(endpoint.at(called.ip())),
            },
            Destination::LocalUnit { unit, port } => {
                let service = config.service_by_name(&unit.service).cloned();
                To::Unit {
                    unit: unit.clone(),
                    port: *port,
                    service,
                }
            }
            Destination::UndeclaredPort(_) | Destination::Passthrough => return None,
        };
        if to.protocol() != Protocol::Http {
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
        })
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

    fn protocol(&self) -> Protocol {
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
