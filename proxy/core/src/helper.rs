//! How much of its work a worker leaves to its helper, and when it takes all of it back.
//!
//! One thread does a little work for less than two do: it wakes up once for what they would wake up twice for. Two do more, and
//! the scheduler sees that they are two.

use std::time::Duration;

/// A worker that is busy for more of the time than this gives away a part of its work, in thousandths.
const BUSY: u64 = 450;
/// Both together busy for less than this: one does it all. Enough below the other mark that this one alone is not busy then.
const QUIET: u64 = 380;
/// Nothing moves for a difference that is smaller than this part of the busier one's work: it would be back at once.
const LEAST_DIFFERENCE: u64 = 3;

/// What one of the two did within a time, and the other one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// For so long this one was busy.
    pub own: Duration,
    /// The other one's.
    pub other: Duration,
    /// Within this time.
    pub within: Duration,
    /// Connections of this one that had a request.
    pub active: usize,
}

impl Work {
    fn thousandths(&self, of: Duration) -> u64 {
        let all = self.within.as_micros().max(1);
        u64::try_from(of.as_micros() * 1000 / all).unwrap_or(u64::MAX)
    }

    /// Is this one busy, and the other one not as much?
    pub fn is_too_much(&self) -> bool {
        let (own, other) = (self.thousandths(self.own), self.thousandths(self.other));
        own > BUSY && own - own / LEAST_DIFFERENCE > other
    }

    /// Could one of them do it all? Not known where nothing was seen yet.
    pub fn is_little(&self) -> bool {
        !self.within.is_zero() && self.thousandths(self.own + self.other) < QUIET
    }

    /// So many of the active connections are the other's from now on. `is_helper`: this one is the helper, which has work only as
    /// long as there is too much for one.
    pub fn leaving(&self, is_helper: bool) -> usize {
        if is_helper && self.is_little() {
            return usize::MAX;
        }
        if !self.is_too_much() {
            return 0;
        }
        // Half of the difference, so both have the same; of one connection nothing. A tenth of a connection counts for nothing:
        // of two the other one's first little work would hold back the second.
        let (own, other) = (self.own.as_micros(), self.other.as_micros());
        let half = ((own - other) * self.active as u128 + own / 5) / (2 * own);
        if self.active < 2 {
            0
        } else {
            usize::try_from(half).unwrap_or(usize::MAX)
        }
    }

    /// Would both have more alike to do, if one of as many equal parts of this one's work were the other's?
    pub fn is_better_without_one_of(&self, parts: usize) -> bool {
        let (own, other) = (self.own.as_micros(), self.other.as_micros());
        self.is_too_much() && own.saturating_sub(other) * parts as u128 > own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(own: u64, other: u64, active: usize) -> Work {
        Work {
            own: Duration::from_millis(own),
            other: Duration::from_millis(other),
            within: Duration::from_secs(1),
            active,
        }
    }

    fn leaving(own: u64, other: u64, active: usize, is_helper: bool) -> usize {
        work(own, other, active).leaving(is_helper)
    }

    #[test]
    fn who_is_busy_gives_half_of_the_difference() {
        assert_eq!(leaving(451, 0, 64, false), 32);
        assert_eq!(leaving(900, 0, 3, false), 1);
        assert_eq!(leaving(800, 400, 64, false), 16);
        assert_eq!(leaving(400, 800, 64, false), 0);
        assert_eq!(leaving(800, 400, 64, true), 16);
    }

    #[test]
    fn who_is_not_busy_or_not_much_more_than_the_other_gives_nothing() {
        assert_eq!(leaving(450, 0, 64, false), 0);
        assert_eq!(leaving(600, 400, 64, false), 0);
        assert_eq!(leaving(600, 399, 64, false), 10);
    }

    #[test]
    fn one_connection_stays_where_it_is() {
        assert_eq!(leaving(1000, 0, 1, false), 0);
        assert_eq!(leaving(1000, 0, 2, false), 1);
    }

    #[test]
    fn two_connections_are_shared_and_three_do_not_go_to_and_fro() {
        assert_eq!(leaving(900, 50, 2, false), 1);
        assert_eq!(leaving(900, 0, 3, false), 1);
        assert_eq!(leaving(600, 300, 2, false), 0);
        assert_eq!(leaving(600, 300, 2, true), 0);
    }

    #[test]
    fn a_part_goes_where_that_makes_both_more_alike() {
        let better = |own, other, parts| work(own, other, 0).is_better_without_one_of(parts);
        assert!(better(900, 0, 2) && better(900, 0, 3) && better(900, 300, 3));
        assert!(!better(900, 0, 1), "all of it would only be elsewhere");
        assert!(!better(900, 450, 2), "two and one would be one and two");
        assert!(!better(400, 0, 2), "one does it");
    }

    #[test]
    fn a_helper_that_is_not_needed_gives_all() {
        assert_eq!(leaving(200, 179, 1, true), usize::MAX);
        assert_eq!(leaving(200, 180, 1, true), 0);
        assert_eq!(leaving(200, 179, 64, false), 0);
    }

    #[test]
    fn where_nothing_was_seen_nothing_is_known() {
        let work = Work {
            active: 1,
            ..Work::default()
        };
        assert!(!work.is_too_much() && !work.is_little());
        assert_eq!((work.leaving(false), work.leaving(true)), (0, 0));
    }
}
