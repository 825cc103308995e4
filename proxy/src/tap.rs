//! Knows whose requests somebody looks at just now (`hostmesh tap`): they are recorded for him as for the journal, by a
//! queue of their own ([`crate::events`]).
//!
//! Law: while nobody looks, a record costs one relaxed load. Who looks says so again before [`LEASE`] is over, else
//! nobody looks any more; nothing else has to end it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::events::Receiver;

/// So long somebody looks on after he said so.
pub const LEASE: Duration = Duration::from_secs(5);

/// Records that wait for the agent at most; it takes them ten times a second.
pub const QUEUE: usize = 1024;

/// One for the process.
pub struct Taps {
    /// Milliseconds after `clock`; 0: nobody looks.
    until: AtomicU64,
    units: ArcSwap<HashSet<String>>,
    clock: Instant,
}

impl Default for Taps {
    fn default() -> Self {
        Self {
            until: AtomicU64::new(0),
            units: ArcSwap::default(),
            clock: Instant::now(),
        }
    }
}

impl Taps {
    /// From now on these units are looked at, and no others; none: nobody looks.
    pub fn watch(&self, units: impl IntoIterator<Item = String>) {
        self.watch_for(units, LEASE);
    }

    /// The same for whoever takes from `tapped`; what nobody took in a look before is thrown away.
    pub fn look(&self, units: impl IntoIterator<Item = String>, tapped: &mut Receiver) {
        if !self.is_watched() {
            tapped.clear();
        }
        self.watch(units);
    }

    fn watch_for(&self, units: impl IntoIterator<Item = String>, lease: Duration) {
        let units: HashSet<_> = units.into_iter().collect();
        let until = if units.is_empty() {
            0
        } else {
            self.now() + millis(lease)
        };
        self.units.store(units.into());
        self.until.store(until, Relaxed);
    }

    /// Does anybody look at this unit?
    pub fn include(&self, unit: &str) -> bool {
        self.is_watched() && self.units.load().contains(unit)
    }

    /// Does anybody look at anything?
    pub fn is_watched(&self) -> bool {
        let until = self.until.load(Relaxed);
        if until == 0 {
            return false;
        }
        let is_over = self.now() >= until;
        if is_over {
            // Unless somebody has just said that he looks on.
            let _renewed = self.until.compare_exchange(until, 0, Relaxed, Relaxed);
        }
        !is_over
    }

    fn now(&self) -> u64 {
        millis(self.clock.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_ends_by_itself() {
        let taps = Taps::default();
        assert!(!taps.include("a.service"));
        taps.watch(["a.service".to_owned()]);
        assert_eq!((taps.include("a.service"), taps.include("b.service")), (true, false));
        taps.watch([]);
        assert!(!taps.include("a.service"));
        taps.watch_for(["a.service".to_owned()], Duration::ZERO);
        assert!(!taps.include("a.service"));
        assert_eq!(
            taps.until.load(Relaxed),
            0,
            "from here on a record costs one load again"
        );
    }
}
