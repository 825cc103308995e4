//! Turns an endpoint into a stream to its application: over the wire, or directly where it runs on this host.
//!
//! The door of the HTTP relay and of opaque connections alike.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::balance::Ask;
use hostmesh_proxy_core::balance::circuit::Resource;
use hostmesh_proxy_core::config::{Config, Endpoint, Port, Service, Unit};
use hostmesh_proxy_core::error::Fault;
use tokio::time::{Instant, timeout};

use crate::stream::Stream;
use crate::traces::connection::Opening;
use crate::wire::client::OpenError;
use crate::wire::idle::Key;
use crate::worker::Worker;
use crate::{deliver, descriptors};

/// Why there is no stream.
#[derive(Debug)]
pub enum ConnectError {
    /// The calling unit has no SVID yet.
    NotReady,
    /// The other side's policy said no: not to be tried again.
    Denied,
    /// Nothing reached the application: another endpoint may do.
    Unreachable(String),
    /// This process lacks what it takes to call anybody.
    Lacking(String),
    /// There is no room for more: not to be tried again.
    BreakerOpen(Resource),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("the unit has no certificate yet"),
            Self::Denied => f.write_str("refused by the other side's policy"),
            Self::Unreachable(why) | Self::Lacking(why) => f.write_str(why),
            Self::BreakerOpen(resource) => write!(f, "the breaker is open: max_{}", resource.word()),
        }
    }
}

impl std::error::Error for ConnectError {}

impl ConnectError {
    /// What a request is answered that cannot go on.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unreachable(_) | Self::Lacking(_) => Fault::Connect,
            Self::Denied => Fault::Denied,
            Self::NotReady => Fault::Internal,
            Self::BreakerOpen(_) => Fault::BreakerOpen,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        let why = error.to_string();
        match descriptors::are_gone(&error) {
            true => Self::Lacking(why),
            false => Self::Unreachable(why),
        }
    }
}

impl From<OpenError> for ConnectError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NoIdentity => Self::NotReady,
            OpenError::Denied => Self::Denied,
            OpenError::Lacking(why) => Self::Lacking(why),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

/// Connects for one connection of a unit of this host.
#[derive(Clone)]
pub struct Connector {
    /// Whose pools.
    pub worker: Rc<Worker>,
    /// The config with which the connection began.
    pub config: Arc<Config>,
    /// Who calls.
    pub unit: Arc<Unit>,
    /// The caller's address.
    pub client: IpAddr,
}

impl Connector {
    /// An endpoint for the next try. `tried`: ids that failed already; `key`: what consistent hashing goes by.
    pub fn pick(&self, service: &Service, tried: &[u64], key: Option<u64>) -> Result<Arc<Endpoint>, Fault> {
        let now = Instant::now().into_std();
        let ask = Ask {
            tried,
            random: self.worker.random(),
            now,
            key,
        };
        let mut loads = self.worker.loads.borrow_mut();
        if let Some(away) = loads.due(service, now) {
            self.see_again(away.clone());
        }
        loads.pick(service, ask).cloned()
    }

    /// Tries whether an endpoint that could not be reached can be by now. No connection of an application waits for it.
    fn see_again(&self, endpoint: Arc<Endpoint>) {
        let (worker, unit) = (self.worker.clone(), self.unit.unit.clone());
        tokio::task::spawn_local(async move {
            let reached = worker.pool.reach(&unit, &endpoint).await;
            let mut loads = worker.loads.borrow_mut();
            // A dial that failed was told by the pool; a connection that was there by nobody.
            match reached {
                Ok(()) => loads.reached(endpoint.id),
                Err(_) => loads.not_tried(endpoint.id),
            }
        });
    }

    /// A connection, unless the service's policy has waited for it long enough.
    pub async fn in_time<T>(
        &self,
        service: &Service,
        connecting: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let Some(limit) = service.traffic.connect_timeout else {
            return connecting.await;
        };
        let late = |_| ConnectError::Unreachable(format!("no connection within {limit:?}"));
        timeout(limit, connecting).await.map_err(late)?
    }

    /// A stream to the endpoint's `target` port, for the connection or request that comes now. `fresh`: not one that was
    /// used before. Not judged here: neither the caller's policy nor, on the same host, the endpoint's.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        target: u16,
        fresh: bool,
        opening: &Opening,
    ) -> Result<Stream, ConnectError> {
        if let Some(unit) = &endpoint.local {
            let Some(port) = unit.port(target) else {
                return Err(ConnectError::Unreachable(format!(
                    "{} does not serve port {target}",
                    unit.unit
                )));
            };
            return Ok(self.deliver(unit, port).await?);
        }
        if !fresh && let Some(stream) = self.worker.idle.take(&Key::new(&self.unit.unit, endpoint, target)) {
            return Ok(Stream::Wire(Box::new(stream)));
        }
        let pool = &self.worker.pool;
        let stream = pool.open(&self.unit.unit, endpoint, target, opening).await?;
        Ok(Stream::Wire(Box::new(stream)))
    }

    /// Gives back a stream on which a response has ended and nothing is under way. A socket is closed: it is the caller's
    /// to keep while its own connection lasts, since it may carry the client's address.
    pub fn release(&self, endpoint: &Endpoint, target: u16, stream: Stream) {
        if let Stream::Wire(stream) = stream {
            self.worker
                .idle
                .put(Key::new(&self.unit.unit, endpoint, target), *stream);
        }
    }

    /// A socket to the application of a unit of this host.
    pub async fn deliver(&self, unit: &Unit, port: &Port) -> io::Result<Stream> {
        deliver::connect(&self.config, unit, port, self.client)
            .await
            .map(Stream::Tcp)
    }
}
