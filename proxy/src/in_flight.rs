//! What is under way to an endpoint, and what comes of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Balance, Endpoint, Service};
use tokio::time::Instant;

use crate::connect::Connector;
use crate::http::down::Answer;
use crate::stats::CodeClass;
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

    /// The head of an answer came. What came of a gRPC call its trailers may have to say.
    pub fn answered(&self, answer: &dyn Answer) {
        let status = answer.status();
        self.status.set(status);
        if self.watched.borrow().is_none() {
            return;
        }
        let grpc = answer.grpc_status();
        let failed = status >= 500 || grpc.is_some_and(has_failed);
        if failed || grpc.is_some() || !is_grpc(answer) {
            return self.ended(failed);
        }
        if let Some(watched) = &*self.watched.borrow() {
            watched.took(&self.worker, false);
        }
    }

    /// All of the answer came, with this status of a gRPC call at its end, if there was one.
    pub fn completed(&self, grpc: Option<u16>) {
        let Some(watched) = self.watched.take() else { return };
        let failed = grpc.is_some_and(|status| has_failed(status.into()));
        if failed {
            watched.took(&self.worker, true);
        }
        watched.connector.judge(&watched.service, &watched.endpoint, failed);
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

/// Is this status of a gRPC call the server's doing?
fn has_failed(status: u32) -> bool {
    CodeClass::of_grpc(u16::try_from(status).unwrap_or(u16::MAX)).is_failure()
}

fn is_grpc(answer: &dyn Answer) -> bool {
    let spoken = answer.single("content-type");
    spoken.is_some_and(|spoken| spoken.starts_with(b"application/grpc"))
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
