//! Refuses requests early while the proxy itself is what they would wait for; those under way go on.
//!
//! Law: where no policy of the host says so, nothing is looked at but that. Else a worker is probed while requests come,
//! and at no other time: an idle proxy sleeps.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::overload::Lateness;
use tokio::time::{Instant, sleep_until};

use crate::shared::Shared;
use crate::worker::Worker;

/// From one probe to the next.
const PROBE: Duration = Duration::from_millis(10);

/// Whether this worker is late.
#[derive(Default)]
pub struct Pressure {
    is_probed: Cell<bool>,
    is_late: Cell<bool>,
    lateness: RefCell<Lateness>,
}

/// A request in flight, counted until it is dropped; not counted where nothing limits them.
pub struct Admitted(Option<Arc<Shared>>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.in_flight.give();
        }
    }
}

/// Lets a request in, unless the proxy is overloaded.
pub fn admit(worker: &Rc<Worker>, config: &Config) -> Result<Admitted, Fault> {
    let Some(overload) = &config.overload else {
        return Ok(Admitted(None));
    };
    if let Some(limit) = overload.delay {
        let pressure = &worker.pressure;
        if !pressure.is_probed.replace(true) {
            tokio::task::spawn_local(probe(worker.clone(), limit));
        }
        if pressure.is_late.get() {
            return Err(Fault::Shed);
        }
    }
    match overload.requests {
        Some(most) if !worker.shared.in_flight.take(most) => Err(Fault::Shed),
        Some(_) => Ok(Admitted(Some(worker.shared.clone()))),
        None => Ok(Admitted(None)),
    }
}

/// Asks to be woken at a time, and sees when that is: what is ready waits as long. Goes on as long as the worker is late.
async fn probe(worker: Rc<Worker>, limit: Duration) {
    let pressure = &worker.pressure;
    loop {
        let due = Instant::now() + PROBE;
        sleep_until(due).await;
        let is_late = pressure.lateness.borrow_mut().seen(due.elapsed(), limit);
        pressure.is_late.set(is_late);
        if !is_late {
            break;
        }
    }
    pressure.is_probed.set(false);
}
