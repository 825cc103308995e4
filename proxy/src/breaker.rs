//! Carries out what the breaker of a service says: takes room, waits for it, ejects endpoints and puts them back, and tells
//! the caller's unit of each change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hostmesh_proxy_core::balance::circuit::Resource;
use hostmesh_proxy_core::config::{Endpoint, Service, Unit};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::connect::{ConnectError, Connector};
use crate::events::Event;
use crate::shared::Shared;

/// Where requests wait until a connection of their service ends.
#[derive(Default)]
pub struct Queues(Mutex<HashMap<Arc<str>, Arc<Notify>>>);

impl Queues {
    fn of(&self, service: &Arc<str>) -> Arc<Notify> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.entry(service.clone()).or_default().clone()
    }
}

/// Room that was taken, until it is dropped.
pub struct Permit {
    shared: Arc<Shared>,
    service: Arc<Service>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let circuit = self.service.circuit();
        circuit.give(self.resource);
        let somebody_waits = || circuit.in_use(Resource::Pending) > 0;
        if self.resource == Resource::Connections && somebody_waits() {
            self.shared.queues.of(&self.service.name).notify_one();
        }
    }
}

/// Room for one connection to a service. Empty where the policy has no limit.
#[derive(Default)]
pub struct Room {
    _connection: Option<Permit>,
    pending: Option<Permit>,
}

impl Room {
    /// The connection is there: nobody waits for it any more.
    pub fn connected(&mut self) {
        self.pending = None;
    }
}

/// What was asked of a limit.
enum Asked {
    Unlimited,
    Given(Permit),
    Full,
}

impl Connector {
    /// Takes one of what the service's policy limits; `None`: it has no breaker. An error: there is no room.
    pub fn take(&self, service: &Arc<Service>, resource: Resource) -> Result<Option<Permit>, ConnectError> {
        match self.try_take(service, resource) {
            Asked::Unlimited => Ok(None),
            Asked::Given(permit) => Ok(Some(permit)),
            Asked::Full => {
                self.refused(service, resource);
                Err(ConnectError::BreakerOpen(resource))
            }
        }
    }

    /// Room for a connection, waited for where as many are in use as may be.
    pub async fn room(&self, service: &Arc<Service>) -> Result<Room, ConnectError> {
        if service.traffic.breaker.is_none() {
            return Ok(Room::default());
        }
        let pending = self.take(service, Resource::Pending)?;
        let connection = loop {
            let queue = self.worker.shared.queues.of(&service.name);
            let ended = queue.notified();
            match self.try_take(service, Resource::Connections) {
                Asked::Unlimited => break None,
                Asked::Given(permit) => break Some(permit),
                Asked::Full => ended.await,
            }
        };
        Ok(Room {
            _connection: connection,
            pending,
        })
    }

    /// The same, where a connection is refused that would have to wait: one of TCP may last for ever.
    pub fn room_at_once(&self, service: &Arc<Service>) -> Result<Room, ConnectError> {
        Ok(Room {
            _connection: self.take(service, Resource::Connections)?,
            pending: self.take(service, Resource::Pending)?,
        })
    }

    fn try_take(&self, service: &Arc<Service>, resource: Resource) -> Asked {
        let Some(breaker) = &service.traffic.breaker else {
            return Asked::Unlimited;
        };
        // What has no limit is counted as well, for metrics.
        if !service
            .circuit()
            .take(resource, breaker.limit(resource).unwrap_or(u32::MAX))
        {
            return Asked::Full;
        }
        Asked::Given(Permit {
            shared: self.worker.shared.clone(),
            service: service.clone(),
            resource,
        })
    }

    /// Counts it; the first one tells that the breaker is open, and later that it is closed again.
    fn refused(&self, service: &Arc<Service>, resource: Resource) {
        let (shared, unit) = (self.worker.shared.clone(), self.unit.clone());
        if !service.circuit().refused(resource, shared.now()) {
            return;
        }
        let service = service.clone();
        let limit = service
            .traffic
            .breaker
            .as_ref()
            .and_then(|breaker| breaker.limit(resource));
        let what = format!("max_{} = {}", resource.word(), limit.unwrap_or_default());
        tell(
            &shared,
            &unit,
            &service,
            "",
            format!("breaker open: {} has {what} in use", service.name),
        );
        tokio::task::spawn_local(async move {
            while let Err(wait) = service.circuit().close(resource, shared.now()) {
                sleep(wait).await;
            }
            tell(
                &shared,
                &unit,
                &service,
                "",
                format!("breaker closed: {}, {what}", service.name),
            );
        });
    }

    /// What came of a try counts where the policy ejects endpoints.
    pub fn judge(&self, service: &Arc<Service>, endpoint: &Arc<Endpoint>, failed: bool) {
        let Some(outlier) = service.traffic.breaker.as_ref().and_then(|breaker| breaker.outlier) else {
            return;
        };
        let (circuit, standing) = (service.circuit().clone(), endpoint.standing().clone());
        if !failed {
            return standing.succeeded();
        }
        let (shared, unit, service) = (self.worker.shared.clone(), self.unit.clone(), service.clone());
        let Some(time) = circuit.failed(&standing, &outlier, service.endpoints.len(), shared.now()) else {
            return;
        };
        let (peer, who) = (endpoint.spiffe_id.clone(), endpoint.to_string());
        let message = format!("ejected for {time:?}: {who}, after {} errors", outlier.errors);
        tell(&shared, &unit, &service, &peer, message);
        tokio::task::spawn_local(async move {
            sleep(time).await;
            circuit.put_back(&standing);
            tell(
                &shared,
                &unit,
                &service,
                &peer,
                format!("back from its ejection: {who}"),
            );
        });
    }
}

/// A line of the caller's unit.
fn tell(shared: &Shared, unit: &Unit, service: &Service, peer: &str, message: String) {
    let rule = service.traffic.breaker.as_ref().map_or("", |breaker| &*breaker.rule);
    shared.events.emit(Event {
        rule: rule.to_owned(),
        service: service.name.to_string(),
        peer: peer.to_owned(),
        message,
        ..Event::now("breaker", &unit.unit, "outbound", "allow")
    });
}
