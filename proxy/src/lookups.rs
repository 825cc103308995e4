//! Remembers by which names meshed units looked up addresses: written by the resolver, read when a connection is set up.
//!
//! Law: only units with `[outbound]` cost anything here, and only queries that [`may_ask`] let go on teach names. The table is of this process: after a restart a unit
//! must look up again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hostmesh_proxy_core::config::{Config, Unit};
use hostmesh_proxy_core::names::{self, Asked, Names};

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

/// What all units have looked up.
pub struct Lookups {
    by_unit: Mutex<HashMap<Arc<str>, Names>>,
    clock: Instant,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            by_unit: Mutex::default(),
            clock: Instant::now(),
        }
    }
}

impl Lookups {
    /// Takes up what a resolver answered that the unit may ask.
    pub fn learn(&self, unit: &Unit, asked: &Asked, answer: &[u8]) {
        let addresses = asked.addresses(answer);
        if addresses.is_empty() {
            return;
        }
        let mut by_unit = self.lock();
        let names = by_unit.entry(unit.unit.clone()).or_default();
        names.learn(&asked.name, &addresses, self.clock.elapsed());
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

    /// Forgets units that have no rule for a name any more.
    pub fn keep(&self, config: &Config) {
        self.lock()
            .retain(|unit, _| config.unit_by_name(unit).is_some_and(|unit| names::has_rules(unit)));
    }

    /// A panic while it was held leaves at worst an address without its name.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Names>> {
        self.by_unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
