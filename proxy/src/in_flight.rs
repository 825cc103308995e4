//! What is under way to an endpoint, and what comes of it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Balance, Endpoint, Service};
use tokio::time::Instant;

use crate::worker::Worker;

/// Counts a request or a connection to an endpoint while it is under way. Where the service's policy goes by it, says once
/// how long the answer took, or that there was none.
pub struct InFlight {
    worker: Rc<Worker>,
    id: Option<u64>,
    begun: Cell<Option<Instant>>,
}

impl InFlight {
    /// It goes there now.
    pub fn begin(worker: &Rc<Worker>, service: Option<&Service>, endpoint: Option<&Arc<Endpoint>>) -> Self {
        if let Some(endpoint) = endpoint {
            worker.loads.borrow_mut().begin(endpoint);
        }
        let is_timed = service.is_some_and(|service| service.traffic.balance == Balance::Ewma);
        Self {
            worker: worker.clone(),
            id: endpoint.map(|endpoint| endpoint.id),
            begun: Cell::new(is_timed.then(Instant::now)),
        }
    }

    /// The head of an answer came.
    pub fn answered(&self, status: u16) {
        self.ended(status >= 500);
    }

    /// There was none, and the endpoint is to blame.
    pub fn failed(&self) {
        self.ended(true);
    }

    fn ended(&self, failed: bool) {
        if let (Some(begun), Some(id)) = (self.begun.take(), self.id) {
            let now = Instant::now();
            let mut loads = self.worker.loads.borrow_mut();
            loads.answered(id, now - begun, failed, now.into_std());
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.worker.loads.borrow_mut().end(id);
        }
    }
}
