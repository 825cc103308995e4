//! Peak EWMA: what an endpoint costs is how long its answers took lately, times who waits for it.
//!
//! As Finagle and Linkerd do it: a slow answer counts at once, quick ones bring the cost down in time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After so long a time what was seen counts 1/e.
const DECAY: Duration = Duration::from_secs(10);
/// A failure is no quick answer: it counts as long as this, if it did not take longer.
const FAILURE: Duration = Duration::from_secs(1);
/// What nobody called for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Seen {
    seconds: f64,
    at: Instant,
}

/// How long endpoints took, by id.
#[derive(Debug, Default)]
pub struct Latencies(HashMap<u64, Seen>);

impl Latencies {
    /// The head of an answer came after so long, or the try failed.
    pub fn add(&mut self, id: u64, took: Duration, failed: bool, now: Instant) {
        let took = if failed { took.max(FAILURE) } else { took }.as_secs_f64();
        let seen = self.0.entry(id).or_insert(Seen { seconds: took, at: now });
        let share = share(seen, now);
        seen.seconds = took.max(seen.seconds * share + took * (1.0 - share));
        seen.at = now;
    }

    /// What one more request costs there. Of whom nothing is known costs nothing while nobody waits for it.
    pub fn cost(&self, id: u64, in_flight: u32, now: Instant) -> f64 {
        match self.0.get(&id) {
            Some(seen) => seen.seconds * share(seen, now) * f64::from(in_flight + 1),
            None => FAILURE.as_secs_f64() * f64::from(in_flight),
        }
    }

    /// Forgets endpoints that nobody calls any more.
    pub fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, seen| now < seen.at + FORGOTTEN);
    }
}

/// How much what was seen counts now.
fn share(seen: &Seen, now: Instant) -> f64 {
    (-now.saturating_duration_since(seen.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let (mut latencies, begin) = (Latencies::default(), Instant::now());
        latencies.add(1, 10 * MS, false, begin);
        latencies.add(1, 500 * MS, false, begin);
        let cost = |latencies: &Latencies, at| latencies.cost(1, 0, at);
        assert!((cost(&latencies, begin) - 0.5).abs() < 1e-9);
        for second in 1..=30 {
            latencies.add(1, 10 * MS, false, begin + Duration::from_secs(second));
        }
        let after = cost(&latencies, begin + Duration::from_secs(30));
        assert!((0.01..0.05).contains(&after), "{after}: e^-3 of the peak is left");
    }

    #[test]
    fn who_waits_counts_and_a_failure_is_not_quick() {
        let (mut latencies, now) = (Latencies::default(), Instant::now());
        latencies.add(1, 10 * MS, false, now);
        latencies.add(2, MS, true, now);
        assert!(latencies.cost(1, 0, now) < latencies.cost(2, 0, now));
        assert!((latencies.cost(1, 9, now) - 0.1).abs() < 1e-9);
        assert_eq!(latencies.cost(3, 0, now).total_cmp(&0.0), std::cmp::Ordering::Equal);
        assert!(latencies.cost(3, 1, now) > 0.5, "one at a time until it is known");
        latencies.sweep(now + Duration::from_secs(600));
        assert!(latencies.0.is_empty());
    }
}
