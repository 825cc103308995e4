//! Bounds how many series there are: what comes beyond counts as `other`, and who has been quiet makes room.
//!
//! A series is a key with a code class, in whichever workers it is counted.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;
use super::row::{CodeClass, Key, Row};

/// Series at most before a config says how many.
const MOST: usize = 4_000;

/// The series of the process.
pub struct Series {
    most: AtomicUsize,
    dropped: AtomicU64,
    open: Mutex<HashSet<(Arc<Key>, usize)>>,
    /// Grows whenever there may be room again, or one more is there; never 0.
    changes: AtomicU64,
    quiet: Mutex<HashMap<Arc<Key>, Quiet>>,
}

/// Since when the count of a key's rows is this.
struct Quiet {
    count: u64,
    since: Instant,
}

/// What is known of a key's rows, over all workers.
#[derive(Default)]
struct Total {
    count: u64,
    /// A connection has one.
    is_held: bool,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            most: AtomicUsize::new(MOST),
            dropped: AtomicU64::default(),
            open: Mutex::default(),
            changes: AtomicU64::new(1),
            quiet: Mutex::default(),
        }
    }
}

impl Series {
    /// So many at most, from now on; those that are there stay.
    pub fn limit(&self, most: usize) {
        if self.most.swap(most, Relaxed) != most {
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, AcqRel);
    }

    /// At most.
    pub fn most(&self) -> usize {
        self.most.load(Relaxed)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// What counted as `other` because there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Is there room for it, or is it there? `refused`: after which change there was none, which is not asked again.
    pub(super) fn admit(&self, key: &Arc<Key>, class: CodeClass, refused: &AtomicU64) -> bool {
        let changes = self.changes.load(Acquire);
        if refused.load(Relaxed) == changes {
            self.drop_one();
            return false;
        }
        let mut open = lock(&self.open);
        let series = (key.clone(), class as usize);
        if open.contains(&series) {
            return true;
        }
        if open.len() < self.most() {
            open.insert(series);
            self.changed();
            return true;
        }
        refused.store(changes, Relaxed);
        self.drop_one();
        false
    }

    /// There was no room.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Those of these rows whose keys were quiet for so long, and which no connection has. They are forgotten here.
    pub(super) fn expire<'a>(
        &self,
        rows: impl Iterator<Item = (&'a Arc<Key>, &'a Arc<Row>)>,
        after: Duration,
        now: Instant,
    ) -> HashSet<Arc<Key>> {
        let mut totals = HashMap::<Arc<Key>, Total>::new();
        for (key, row) in rows {
            let total = totals.entry(key.clone()).or_default();
            total.count += row.count();
            total.is_held |= Arc::strong_count(row) > 1;
        }
        let mut quiet = lock(&self.quiet);
        quiet.retain(|key, _| totals.contains_key(key));
        let mut over = HashSet::new();
        for (key, Total { count, is_held }) in totals {
            let known = quiet.entry(key.clone()).or_insert(Quiet { count, since: now });
            if known.count != count || is_held {
                *known = Quiet { count, since: now };
            } else if now.duration_since(known.since) >= after {
                quiet.remove(&key);
                over.insert(key);
            }
        }
        if !over.is_empty() {
            lock(&self.open).retain(|(key, _)| !over.contains(key));
            self.changed();
        }
        over
    }
}
