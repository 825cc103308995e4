//! Ends a worker: nothing new is accepted, peers are told (GOAWAY), what is under way gets its time.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use crate::worker::Worker;

/// Returns when no connection is open any more, or when the time is over; then, how many are cut off.
pub async fn wait(worker: &Rc<Worker>, limit: Duration) -> usize {
    match timeout(limit, worker.all_ended()).await {
        Ok(()) => 0,
        Err(_) => worker.open(),
    }
}
