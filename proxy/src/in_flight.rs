//! What is under way to an endpoint, and what comes of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Balance, Endpoint, Service};
use tokio::time::Instant;

use crate::connect::Connector;
use crate::worker::Worker;

/// Counts a request or a connection to an endpoint while it is under way. Where the service's policy goes by it, says once
/// how long the answer took, or that there was none.
pub struct InFlight {
    worker: Rc<Worker>,
    id: Option<u64>,
    watched: RefCell<Option<Watched>>,
    /// Of the answer, when its head has come; else 0.
    status: Cell<u16>,
}

/// A try of which it counts what comes.
struct Watched {
    connector: Connector,
    service: Arc<Service>,
    endpoint: Arc<Endpoint>,
    begun: Instant,
}

impl InFlight {
    /// It goes there now.
    pub fn begin(connector: &Connector, service: Option<&Arc<Service>>, endpoint: Option<&Arc<Endpoint>>) -> Self {
        if let Some(endpoint) = endpoint {
            connector.worker.loads.borrow_mut().begin(endpoint);
        }
        let watched = service.zip(endpoint).filter(|(service, _)| counts(service));
        Self {
            worker: connector.worker.clone(),
            status: Cell::new(0),
            id: endpoint.map(|endpoint| endpoint.id),
            watched: RefCell::new(watched.map(|(service, endpoint)| Watched {
                connector: connector.clone(),
                service: service.clone(),
                endpoint: endpoint.clone(),
                begun: Instant::now(),
            })),
        }
    }

    /// The head of an answer came.
    pub fn answered(&self, status: u16) {
        self.status.set(status);
        self.ended(status >= 500);
    }

    /// There was none, and the endpoint is to blame.
    pub fn failed(&self) {
        self.ended(true);
    }

    /// Another endpoint answered first: that it took so long is known, and nothing else.
    pub fn overtaken(&self) {
        let Some(watched) = self.watched.take() else { return };
        watched.took(&self.worker, false);
    }

    /// The status of the answer whose head came; 0: none.
    pub fn status(&self) -> u16 {
        self.status.get()
    }

    fn ended(&self, failed: bool) {
        let Some(watched) = self.watched.take() else { return };
        watched.took(&self.worker, failed);
        watched.connector.judge(&watched.service, &watched.endpoint, failed);
    }
}

impl Watched {
    fn took(&self, worker: &Worker, failed: bool) {
        if self.service.traffic.balance == Balance::Ewma {
            let now = Instant::now();
            let mut loads = worker.loads.borrow_mut();
            loads.answered(self.endpoint.id, now - self.begun, failed, now.into_std());
        }
    }
}

/// Does the policy go by what comes of a try?
fn counts(service: &Service) -> bool {
    let breaker = service.traffic.breaker.as_ref();
    service.traffic.balance == Balance::Ewma || breaker.is_some_and(|breaker| breaker.outlier.is_some())
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.worker.loads.borrow_mut().end(id);
        }
    }
}
