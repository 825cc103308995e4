//! What all workers and the control side share: the config in force, the units' SVIDs, counters and events.
//!
//! Law: nothing here is locked on the way of a byte. Config, SVIDs and roots are replaced whole, never changed in place;
//! counters belong to one worker each and are only read by others.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::overload::InFlight;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::breaker::Queues;
use crate::circuits;
use crate::events::EventSink;
use crate::lookups::Lookups;
use crate::stats::{Collected, Stats};
use crate::tls::{BadBundle, Trust};
use crate::told::Told;
use crate::traces::SpanSink;

/// A unit's certificate chain and key, ready for TLS.
pub struct Svid {
    /// The unit's full name, `inventory.service`.
    pub unit: String,
    /// The one URI SAN of the leaf.
    pub spiffe_id: String,
    /// The TLS server name by which peers ask for it ([`Svids::by_sni`]).
    pub sni: String,
    /// The leaf's serial number, lower-case hex without leading zeros.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before: u64,
    /// Seconds since the epoch.
    pub not_after: u64,
    /// Chain (leaf first) and key.
    pub key: Arc<CertifiedKey>,
}

/// All SVIDs in force.
#[derive(Default)]
pub struct Svids {
    by_unit: HashMap<String, Arc<Svid>>,
    by_sni: HashMap<String, Arc<Svid>>,
}

impl Svids {
    /// The SVIDs, at most one a unit; of two for the same unit the last counts.
    pub fn new(svids: impl IntoIterator<Item = Arc<Svid>>) -> Self {
        let by_unit: HashMap<_, _> = svids.into_iter().map(|svid| (svid.unit.clone(), svid)).collect();
        let by_sni = by_unit.values().map(|svid| (svid.sni.clone(), svid.clone())).collect();
        Self { by_unit, by_sni }
    }

    /// The SVID with which `unit` (full name) calls.
    pub fn by_unit(&self, unit: &str) -> Option<&Arc<Svid>> {
        self.by_unit.get(unit)
    }

    /// The SVID that answers to a TLS server name.
    pub fn by_sni(&self, sni: &str) -> Option<&Arc<Svid>> {
        self.by_sni.get(sni)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Svid>> {
        self.by_unit.values()
    }
}

/// Why a config could not be put in force.
#[derive(Debug)]
pub enum Refused {
    /// The trust bundle has a certificate that is none.
    Bundle(BadBundle),
    /// The listeners' ports changed: sockets are bound once in the life of the process.
    Listeners,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(bad) => bad.fmt(f),
            Self::Listeners => f.write_str("the listeners' ports changed: restart hostmesh-proxy.service"),
        }
    }
}

impl std::error::Error for Refused {}

/// One for the process, behind an `Arc`.
pub struct Shared {
    config: ArcSwapOption<Config>,
    svids: ArcSwap<Svids>,
    trust: ArcSwap<Trust>,
    changes: watch::Sender<u64>,
    draining: watch::Sender<bool>,
    retired: watch::Sender<bool>,
    /// Where events for the agent go: never blocks, counts what it must drop.
    pub events: EventSink,
    /// Where spans for the collector go: never blocks, counts what it must drop.
    pub spans: SpanSink,
    /// The counters; every worker asks for its own ([`Stats::worker`]).
    pub stats: Arc<Stats>,
    /// What the process says of itself.
    pub told: Told,
    /// By which names units know addresses.
    pub lookups: Lookups,
    /// How many requests are under way, where that is limited.
    pub in_flight: InFlight,
    /// Who waits for room of a service.
    pub queues: Queues,
    /// When the process started.
    pub started: SystemTime,
    /// How many workers carry traffic.
    pub workers: usize,
    /// When each worker was last seen to move, ms after the start; 0: it has not begun.
    beats: Vec<AtomicU64>,
    clock: Instant,
}

impl Shared {
    /// Nothing in force yet: no listener opens before [`Shared::set_config`].
    pub fn new(events: EventSink, spans: SpanSink, stats: Arc<Stats>, workers: usize) -> Self {
        Self {
            config: ArcSwapOption::empty(),
            svids: ArcSwap::from_pointee(Svids::default()),
            trust: ArcSwap::from_pointee(Trust::nobody()),
            changes: watch::channel(0).0,
            draining: watch::channel(false).0,
            retired: watch::channel(false).0,
            events,
            spans,
            stats,
            told: Told::default(),
            lookups: Lookups::default(),
            in_flight: InFlight::default(),
            queues: Queues::default(),
            started: SystemTime::now(),
            workers,
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            clock: Instant::now(),
        }
    }

    /// The config in force, if any. Hold it for one connection or request, not longer.
    pub fn config(&self) -> Option<Arc<Config>> {
        self.config.load_full()
    }

    /// Is this the config in force? Costs no count that all workers share.
    pub fn is_in_force(&self, config: &Arc<Config>) -> bool {
        self.config.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, config))
    }

    /// The config in force, if its policies are others than these.
    pub fn other_policies(&self, than: u64) -> Option<Arc<Config>> {
        let now = self.config.load();
        now.as_ref().filter(|config| config.policies != than).cloned()
    }

    /// The SVIDs in force.
    pub fn svids(&self) -> Arc<Svids> {
        self.svids.load_full()
    }

    /// Whom peers' certificates must chain to.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// Puts a config in force; one that is refused changes nothing.
    pub fn set_config(&self, mut config: Config) -> Result<(), Refused> {
        if let Some(old) = self.config() {
            if old.listeners != config.listeners {
                return Err(Refused::Listeners);
            }
            config.follow(&old, Instant::now());
        }
        let (domain, bundle, revoked) = (&config.trust_domain, &config.trust_bundle, &config.revoked);
        if !self.trust.load().is_of(domain, bundle, revoked) {
            let trust = Trust::new(domain, bundle, revoked.clone()).map_err(Refused::Bundle)?;
            self.trust.store(Arc::new(trust));
        }
        self.lookups.keep(&config);
        self.stats.series.limit(config.max_series);
        self.spans.keep(config.traces.as_ref().map_or(0, |traces| traces.queue));
        self.config.store(Some(Arc::new(config)));
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Puts SVIDs in force. Wire connections made with others take no new streams.
    pub fn set_svids(&self, svids: Svids) {
        self.svids.store(Arc::new(svids));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Counts changes of config or SVIDs.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Since the process began.
    pub fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// A worker says that it moves.
    pub fn beat(&self, worker: usize) {
        let now = u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beats[worker].store(now.max(1), Relaxed);
    }

    /// Has every worker that began moved within this time?
    pub fn all_move(&self, within: Duration) -> bool {
        let now = self.clock.elapsed();
        self.beats
            .iter()
            .map(|beat| beat.load(Relaxed))
            .all(|beat| beat == 0 || now <= Duration::from_millis(beat) + within)
    }

    /// Turns true once, when the process is told to end.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Tells everybody to stop accepting and finish.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Was everybody told so?
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// All that this process counted since its start.
    pub fn counts(&self) -> Collected {
        let mut all = self.stats.collect();
        all.circuits = self
            .config()
            .map(|config| circuits::counted(&config))
            .unwrap_or_default();
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        all.gauges.extend([
            ("events_dropped".to_owned(), number(self.events.dropped_total())),
            ("log_lost".to_owned(), number(self.told.lost())),
            ("traces_exported".to_owned(), number(self.spans.exported())),
        ]);
        all.traces_dropped = self.spans.dropped();
        all
    }

    /// Turns true once, when another process has taken over: nothing is accepted any more, what is open goes on.
    pub fn retired(&self) -> watch::Receiver<bool> {
        self.retired.subscribe()
    }

    /// Tells everybody that another process has taken over. The service manager no longer listens to this one.
    pub fn retire(&self) {
        self.retired.send_replace(true);
    }

    /// Is nothing new to begin in this process?
    pub fn is_ending(&self) -> bool {
        self.is_draining() || self.is_retired()
    }

    /// Has another process taken over?
    pub fn is_retired(&self) -> bool {
        *self.retired.borrow()
    }
}
