//! Keeps the last trace of a bucket. One worker writes it, the control thread reads it, and neither waits.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// `Exemplar` of `hostmesh/wire/proxy_control.py`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are documented at the contract
pub struct Exemplar {
    pub bucket: usize,
    pub trace_id: String,
    pub duration_us: u64,
    pub time_ms: u64,
}

/// Where one is kept.
#[derive(Default)]
pub(super) struct Slot {
    /// Odd while it is written; 0: nothing was yet.
    version: AtomicU64,
    trace: [AtomicU64; 2],
    duration_us: AtomicU64,
    time_ms: AtomicU64,
}

impl Slot {
    /// Takes the place of the one before. Only the row's own worker may.
    pub fn set(&self, trace_id: u128, duration_us: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.trace[0].store((trace_id >> 64) as u64, Ordering::Relaxed);
        self.trace[1].store(trace_id as u64, Ordering::Relaxed);
        self.duration_us.store(duration_us, Ordering::Relaxed);
        let millis = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        self.time_ms.store(millis, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    /// The last one; `None` where there is none, or it is being written.
    pub fn get(&self, bucket: usize) -> Option<Exemplar> {
        let version = self.version.load(Ordering::Acquire);
        if version == 0 || version % 2 == 1 {
            return None;
        }
        let [high, low] = [0, 1].map(|half: usize| self.trace[half].load(Ordering::Relaxed));
        let found = Exemplar {
            bucket,
            trace_id: format!("{high:016x}{low:016x}"),
            duration_us: self.duration_us.load(Ordering::Relaxed),
            time_ms: self.time_ms.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (self.version.load(Ordering::Relaxed) == version).then_some(found)
    }
}

/// Adds another's; of each bucket the later one stays.
pub fn add_exemplars(sum: &mut Vec<Exemplar>, more: impl IntoIterator<Item = Exemplar>) {
    for exemplar in more {
        match sum.iter_mut().find(|known| known.bucket == exemplar.bucket) {
            Some(known) if known.time_ms > exemplar.time_ms => {}
            Some(known) => *known = exemplar,
            None => sum.push(exemplar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn of_each_bucket_the_later_one_stays() {
        let at = |bucket, time_ms| Exemplar {
            bucket,
            trace_id: format!("{time_ms:032x}"),
            duration_us: time_ms,
            time_ms,
        };
        let mut sum = Vec::new();
        add_exemplars(&mut sum, [at(0, 10), at(3, 40)]);
        add_exemplars(&mut sum, [at(3, 30), at(0, 20), at(5, 1)]);
        assert_eq!(sum, [at(0, 20), at(3, 40), at(5, 1)]);
    }

    #[test]
    fn what_is_read_while_it_is_written_is_whole_or_nothing() {
        let slot = Arc::new(Slot::default());
        assert_eq!(slot.get(0), None);
        let writer = {
            let slot = slot.clone();
            std::thread::spawn(move || {
                for i in 1..200_000_u64 {
                    slot.set(u128::from(i) << 64 | u128::from(i), i);
                }
            })
        };
        while !writer.is_finished() {
            if let Some(exemplar) = slot.get(0) {
                let half = format!("{:016x}", exemplar.duration_us);
                assert_eq!(exemplar.trace_id, half.repeat(2));
            }
        }
        writer.join().expect("written");
        assert_eq!(slot.get(0).expect("the last").duration_us, 199_999);
    }
}
