//! Sums up what all processes of the proxy counted, so that `/metrics` has one number, and one that never falls.
//!
//! Law: each process reports all that it counted since its start; a report takes the place of the one before. So nothing
//! counts twice, whoever leads.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Generation, memory};
use crate::shared::Shared;
use crate::stats::{Collected, Key, Stats, TrafficCount, add_exemplars, add_failures, add_flags};
use crate::words::Word;

/// What a process from before says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Since its start.
    pub counts: Collected,
    /// Its resident memory, bytes.
    pub memory: u64,
}

impl Report {
    /// Of this process, now.
    pub fn of(shared: &Shared) -> Self {
        Self {
            counts: shared.counts(),
            memory: memory(),
        }
    }
}

/// `RetiredProxy` of `hostmesh/wire/proxy_control.py`.
#[derive(Clone, Debug, Serialize)]
pub struct Retired {
    /// Which.
    #[serde(flatten)]
    pub generation: Generation,
    /// Accepted connections that are open.
    pub connections: i64,
    /// Resident.
    pub memory_bytes: u64,
}

/// What those from before counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sums {
    /// Those that said farewell.
    ended: Collected,
    /// The last report of each of the others.
    reports: Vec<Entry>,
    /// Since when nobody has ended.
    #[serde(skip)]
    quiet: Option<Instant>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    generation: Generation,
    report: Report,
    /// Is it there? What it holds open counts only then.
    #[serde(skip)]
    is_there: bool,
}

impl Sums {
    /// A report.
    pub fn report(&mut self, generation: &Generation, report: Report) {
        self.reports.retain(|entry| entry.generation != *generation);
        self.reports.push(Entry {
            generation: generation.clone(),
            report,
            is_there: true,
        });
    }

    /// It does not hear any more: it has crashed, or comes back.
    pub fn lose(&mut self, generation: &Generation) {
        for entry in &mut self.reports {
            entry.is_there &= entry.generation != *generation;
        }
    }

    /// It has ended; its last report stays in the sum.
    pub fn end(&mut self, generation: &Generation) {
        let (ended, left) = std::mem::take(&mut self.reports)
            .into_iter()
            .partition(|entry| entry.generation == *generation);
        self.reports = left;
        self.quiet = None;
        for Entry { report, .. } in ended {
            self.ended.add(&report.counts.without_levels());
        }
    }

    /// Ends the series of what was quiet for so long, in this process (`own`) and in what is left of others at once, so
    /// that no sum falls and goes on. What a process has that is there stays until that ends.
    pub fn expire(&mut self, own: &Stats, after: Duration, now: Instant) {
        let there = self.reports.iter().filter(|entry| entry.is_there);
        let held: HashSet<_> = there
            .flat_map(|entry| entry.report.counts.traffic.iter().map(TrafficCount::key))
            .collect();
        let over = own.expire(after, now, |key| held.contains(key));
        let is_late = now.duration_since(*self.quiet.get_or_insert(now)) >= after;
        let of_ended = self.ended.traffic.len();
        if over.is_empty() && !is_late && of_ended <= own.series.most() {
            return;
        }
        let still: HashSet<_> = own.collect().traffic.iter().map(TrafficCount::key).collect();
        let is_known = |key: &Key| still.contains(key) || held.contains(key);
        let stays = |key: &Key| is_known(key) || !(is_late || over.contains(key));
        self.ended.traffic.retain(|row| stays(&row.key()));
        if self.ended.traffic.len() > own.series.most() {
            self.ended.traffic.retain(|row| is_known(&row.key()));
        }
        for entry in self.reports.iter_mut().filter(|entry| !entry.is_there) {
            entry.report.counts.traffic.retain(|row| stays(&row.key()));
        }
    }

    /// Those that are there.
    pub fn there(&self) -> Vec<Retired> {
        let there = self.reports.iter().filter(|entry| entry.is_there);
        let retired = there.map(|Entry { generation, report, .. }| Retired {
            generation: generation.clone(),
            connections: report.counts.gauges.get("connections").copied().unwrap_or_default(),
            memory_bytes: report.memory,
        });
        retired.collect()
    }

    /// Adds all of it to what this process counted.
    pub fn add_to(&self, own: &mut Collected) {
        own.add(&self.ended);
        for entry in &self.reports {
            match entry.is_there {
                true => own.add(&entry.report.counts),
                false => own.add(&entry.report.counts.clone().without_levels()),
            }
        }
    }
}

/// Gauges that say what is now; the others count since the start.
const LEVELS: [&str; 3] = ["connections", "streams", "pooled"];

impl Collected {
    /// Adds what another process counted.
    fn add(&mut self, other: &Self) {
        let rows = std::mem::take(&mut self.traffic).into_iter();
        let mut rows: BTreeMap<_, _> = rows.map(|row| (key(&row), row)).collect();
        for row in &other.traffic {
            match rows.get_mut(&key(row)) {
                Some(sum) => add(sum, row),
                None => _ = rows.insert(key(row), row.clone()),
            }
        }
        self.traffic = rows.into_values().collect();
        for (rule, count) in &other.denied {
            *self.denied.entry(rule.clone()).or_default() += count;
        }
        for (name, level) in &other.gauges {
            *self.gauges.entry(name.clone()).or_default() += level;
        }
        for (reason, count) in &other.traces_dropped {
            *self.traces_dropped.entry(reason.clone()).or_default() += count;
        }
        self.series_dropped += other.series_dropped;
        add_flags(&mut self.flags, &other.flags);
        add_failures(&mut self.tls_failures, &other.tls_failures);
        for (service, circuit) in &other.circuits {
            self.circuits.entry(service.clone()).or_default().add(circuit);
        }
    }

    /// Without what is over when its process is.
    fn without_levels(mut self) -> Self {
        self.gauges.retain(|name, _| !LEVELS.contains(&&**name));
        let circuits = std::mem::take(&mut self.circuits).into_iter();
        self.circuits = circuits.map(|(name, count)| (name, count.without_levels())).collect();
        self
    }
}

fn key(row: &TrafficCount) -> (Key, Word) {
    (row.key(), row.code_class)
}

fn add(sum: &mut TrafficCount, row: &TrafficCount) {
    sum.count += row.count;
    sum.retries += row.retries;
    sum.bytes_in += row.bytes_in;
    sum.bytes_out += row.bytes_out;
    sum.duration_us_sum += row.duration_us_sum;
    for (sum, bucket) in sum.buckets.iter_mut().zip(&row.buckets) {
        *sum += bucket;
    }
    add_exemplars(&mut sum.exemplars, row.exemplars.iter().cloned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::CircuitCount;
    use crate::peer::Reason;
    use crate::stats::{CodeClass, Gauge};
    use hostmesh_proxy_core::flag::Flag;

    fn counted(requests: u64, connections: i64) -> Report {
        let stats = Stats::new();
        let worker = stats.worker();
        let row = worker.handle(Key {
            unit: "a.service".into(),
            direction: "inbound",
            peer: "b".into(),
            service: "a".into(),
            route: String::new(),
            port: 80,
            protocol: "http",
        });
        for _ in 0..requests {
            row.record(CodeClass::Success, 300, 1, 2, 0);
            row.flagged(Flag::Timeout);
        }
        worker.denied("a.service.toml:7");
        worker.add(Gauge::Connections, connections);
        worker.add(Gauge::TlsHandshakes, 3);
        worker.tls_failure("server", Reason::Expired);
        let mut counts = stats.collect();
        let circuit = CircuitCount {
            refused: [("pending".to_owned(), requests)].into(),
            in_use: [("pending".to_owned(), 1)].into(),
            limits: [("pending".to_owned(), 9)].into(),
            ejected: 1,
            ..CircuitCount::default()
        };
        counts.circuits.insert("a".into(), circuit);
        Report { counts, memory: 1 }
    }

    fn generation(pid: u32) -> Generation {
        Generation {
            pid,
            started: 1,
            version: "0".into(),
        }
    }

    /// Requests, connections, handshakes, refusals.
    fn sum(sums: &Sums) -> (u64, i64, i64, u64) {
        let mut all = counted(1, 1).counts;
        sums.add_to(&mut all);
        assert_eq!(all.traffic.len(), 1, "one row, whoever counted");
        assert_eq!(all.tls_failures["server"]["expired"], all.denied["a.service.toml:7"]);
        assert_eq!(all.traffic[0].buckets.iter().sum::<u64>(), all.traffic[0].count);
        assert_eq!(all.flags["a.service"]["a"]["timeout"], all.traffic[0].count);
        let circuit = &all.circuits["a"];
        assert_eq!(circuit.refused["pending"], all.traffic[0].count);
        let there = 1 + sums.there().len() as u32;
        let levels = (circuit.in_use["pending"], circuit.ejected, circuit.limits["pending"]);
        assert_eq!(levels, (there, there, 9), "of those that are there");
        let gauge = |name: &str| all.gauges[name];
        (
            all.traffic[0].count,
            gauge("connections"),
            gauge("tls_handshakes"),
            all.denied["a.service.toml:7"],
        )
    }

    #[test]
    fn nothing_counts_twice_and_nothing_is_lost() {
        let mut sums = Sums::default();
        assert_eq!(sum(&sums), (1, 1, 3, 1));
        sums.report(&generation(1), counted(10, 2));
        sums.report(&generation(1), counted(12, 1));
        sums.report(&generation(2), counted(100, 5));
        assert_eq!(sum(&sums), (113, 7, 9, 3));
        assert_eq!(sums.there().len(), 2);
        let next: Sums = serde_json::from_slice(&serde_json::to_vec(&sums).expect("said")).expect("heard");
        assert_eq!(
            sum(&next),
            (113, 1, 9, 3),
            "what they hold open counts when they are heard again"
        );
        sums.end(&generation(1));
        assert_eq!(sum(&sums), (113, 6, 9, 3));
        sums.lose(&generation(2));
        assert_eq!(sum(&sums), (113, 1, 9, 3));
        sums.report(&generation(2), counted(101, 4));
        sums.end(&generation(2));
        sums.end(&generation(2));
        assert_eq!((sum(&sums), sums.there().len()), ((114, 1, 9, 3), 0));
    }

    #[test]
    fn a_quiet_series_ends_everywhere_at_once_and_none_falls() {
        let (hour, begun) = (Duration::from_secs(3600), Instant::now());
        let own = Stats::new();
        let mut sums = Sums::default();
        sums.report(&generation(1), counted(10, 2));
        sums.report(&generation(2), counted(100, 5));
        sums.end(&generation(1));
        let total = |sums: &Sums| {
            let mut all = own.collect();
            sums.add_to(&mut all);
            all.traffic.iter().map(|row| row.count).sum::<u64>()
        };
        for hours in [0, 1, 2] {
            sums.expire(&own, hour, begun + hours * hour);
            assert_eq!(total(&sums), 110, "a process that is there has it");
        }
        sums.end(&generation(2));
        sums.expire(&own, hour, begun + 3 * hour);
        assert_eq!(total(&sums), 110, "not quiet for long");
        sums.expire(&own, hour, begun + 4 * hour);
        assert_eq!(total(&sums), 0);
    }
}
