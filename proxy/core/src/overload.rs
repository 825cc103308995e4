//! When the proxy itself is what requests wait for: how late a worker's loop may be, and how many requests may be in flight.

use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Relaxed},
};
use std::time::Duration;

/// From when requests are refused. `None`: never for that reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// A worker comes so late to what is ready.
    pub delay: Option<Duration>,
    /// So many requests are in flight in the whole proxy.
    pub requests: Option<u32>,
}

/// Late once is a moment of the machine (it slept, the process was stopped); late twice in a row is load.
const ROW: u32 = 2;

/// How late one worker's loop was of late.
#[derive(Debug, Default)]
pub struct Lateness {
    row: u32,
    is_late: bool,
}

impl Lateness {
    /// What was due came so late. Is the loop late, by this? It is until something comes in half of the time.
    pub fn seen(&mut self, late: Duration, limit: Duration) -> bool {
        self.row = if late > limit { self.row + 1 } else { 0 };
        self.is_late = self.row >= ROW || (self.is_late && late > limit / 2);
        self.is_late
    }
}

/// Requests in flight in the whole proxy.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

impl InFlight {
    /// One more, where that stays within the limit: to be given back.
    pub fn take(&self, most: u32) -> bool {
        let more = |count: u32| (count < most).then(|| count + 1);
        self.0.fetch_update(AcqRel, Relaxed, more).is_ok()
    }

    /// Gives it back.
    pub fn give(&self) {
        self.0.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn late_once_is_a_moment_late_twice_is_load() {
        let mut loop_ = Lateness::default();
        let seen = [0, 30_000, 0, 101, 99, 101, 101, 60, 51, 50, 99, 101].map(|late| loop_.seen(ms(late), LIMIT));
        let wanted = [
            false, false, false, false, false, false, true, true, true, false, false, false,
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn what_is_given_back_can_be_taken() {
        let in_flight = InFlight::default();
        assert!(in_flight.take(2) && in_flight.take(2) && !in_flight.take(2));
        in_flight.give();
        assert!(in_flight.take(2) && !in_flight.take(2));
    }
}
