//! Remembers by which names meshed units looked up addresses: written by the resolver, read when a connection is set up.
//!
//! Law: only units with `[outbound]` cost anything here, and only queries that [`may_ask`] let go on teach names. The table goes from process to process by a reload; after a
//! restart a unit must look up again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hostmesh_proxy_core::config::{Config, Unit};
use hostmesh_proxy_core::names::{self, Asked, Names};
use serde::{Deserialize, Serialize};

use crate::generations;

/// Whom this host asks (resolv.conf(5)). Read anew for each query that counts, so that a change needs no word.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// May this unit's query, which the mesh doesn't answer, go on to this resolver? Without [`RESOLV_CONF`] the host asks
/// itself; where it can't be read, the host's resolvers aren't known.
pub fn may_ask(unit: &Unit, resolver: IpAddr, query: &[u8]) -> io::Result<bool> {
    if unit.outbound.is_none() {
        return Ok(true);
    }
    let resolv_conf = match fs::read_to_string(RESOLV_CONF) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }?;
    Ok(names::passes_on(unit, query, resolver, &resolv_conf))
}

/// One name that a unit has looked up, as it goes to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    unit: String,
    name: String,
    address: IpAddr,
    /// So long it still counts.
    life_ms: u64,
}

impl Learned {
    fn new(unit: &str, name: &str, address: IpAddr, life: Duration) -> Self {
        Self {
            unit: unit.to_owned(),
            name: name.to_owned(),
            address,
            life_ms: u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What all units have looked up.
pub struct Lookups {
    by_unit: Mutex<HashMap<Arc<str>, Names>>,
    /// By this socket hears whoever takes over, or has.
    heir: Mutex<Option<PathBuf>>,
    clock: Instant,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            by_unit: Mutex::default(),
            heir: Mutex::default(),
            clock: Instant::now(),
        }
    }
}

impl Lookups {
    /// Takes up what a resolver answered that the unit may ask. The unit may have the answer, and connect by it, when this
    /// returns: whoever takes over knows it, too.
    pub async fn learn(&self, unit: &Unit, asked: &Asked, answer: &[u8]) {
        let addresses = asked.addresses(answer);
        if addresses.is_empty() {
            return;
        }
        self.lock()
            .entry(unit.unit.clone())
            .or_default()
            .learn(&asked.name, &addresses, self.clock.elapsed());
        let heir = self.heir().clone();
        if let Some(socket) = heir {
            let learned = |(address, life): &(IpAddr, Duration)| Learned::new(&unit.unit, &asked.name, *address, *life);
            generations::tell_learned(&socket, addresses.iter().map(learned).collect()).await;
        }
    }

    /// From now on another process must know what this one learns: whoever leads hears by this socket. `None`: no more.
    pub fn hand_over(&self, socket: Option<&Path>) {
        *self.heir() = socket.map(Path::to_owned);
    }

    /// The names by which the unit knows this address now.
    pub fn names(&self, unit: &Unit, address: IpAddr) -> Vec<Arc<str>> {
        if !names::has_rules(unit) {
            return Vec::new();
        }
        let by_unit = self.lock();
        let names = by_unit.get(&unit.unit);
        names.map_or_else(Vec::new, |names| names.of(address, self.clock.elapsed()))
    }

    /// All of it, for another process to [`Lookups::restore`].
    pub fn all(&self) -> Vec<Learned> {
        let now = self.clock.elapsed();
        let by_unit = self.lock();
        let all = by_unit
            .iter()
            .flat_map(|(unit, names)| names.all(now).into_iter().map(move |known| (unit, known)));
        all.map(|(unit, (name, address, life))| Learned::new(unit, &name, address, life))
            .collect()
    }

    /// Takes up what another process has learned.
    pub fn restore(&self, learned: Vec<Learned>) {
        let now = self.clock.elapsed();
        let mut by_unit = self.lock();
        for one in learned {
            let life = Duration::from_millis(one.life_ms).min(names::LONGEST);
            let names = by_unit.entry(one.unit.into()).or_default();
            names.learn(&one.name.into(), &[(one.address, life)], now);
        }
    }

    /// Forgets units that have no rule for a name any more.
    pub fn keep(&self, config: &Config) {
        self.lock()
            .retain(|unit, _| config.unit_by_name(unit).is_some_and(|unit| names::has_rules(unit)));
    }

    fn heir(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.heir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic while it was held leaves at worst an address without its name.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Names>> {
        self.by_unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_up_goes_to_another_process_and_counts_no_longer_there() {
        let (one, two) = (Lookups::default(), Lookups::default());
        let address: IpAddr = "198.18.0.9".parse().expect("an address");
        let second = Duration::from_secs(1);
        let mut names = Names::default();
        names.learn(
            &"api.example.org".into(),
            &[(address, second * 70)],
            one.clock.elapsed(),
        );
        names.learn(
            &"late.example.org".into(),
            &[(address, Duration::ZERO)],
            one.clock.elapsed(),
        );
        one.lock().insert("a.service".into(), names);
        let told = serde_json::to_vec(&one.all()).expect("said");
        two.restore(serde_json::from_slice(&told).expect("heard"));
        let there = two.all();
        assert_eq!(there.len(), 1, "{there:?}");
        assert_eq!(
            (&*there[0].unit, &*there[0].name, there[0].address),
            ("a.service", "api.example.org", address)
        );
        assert!((60_000..=70_000).contains(&there[0].life_ms), "{there:?}");
        let known = two.lock()["a.service"].of(address, two.clock.elapsed() + second * 71);
        assert!(known.is_empty(), "{known:?}");
    }
}
