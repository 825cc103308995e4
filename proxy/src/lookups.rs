//! Remembers by which names meshed units looked up addresses: written by the resolver, read when a connection is set up.
//!
//! Law: only units that have a rule for a name cost anything here. The table is of this process: after a restart a unit
//! must look up again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hostmesh_proxy_core::config::{Config, Unit};
use hostmesh_proxy_core::names::{self, Asked, Names};

/// Whom this host asks (resolv.conf(5)). Read anew for each answer that counts, so that a change needs no word.
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Default)]
struct Table {
    names: Names,
    /// It was said once that a resolver is not believed.
    told: bool,
}

/// What all units have looked up.
pub struct Lookups {
    by_unit: Mutex<HashMap<Arc<str>, Table>>,
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
    /// Takes up what this resolver answered.
    pub fn learn(&self, unit: &Unit, asked: &Asked, resolver: IpAddr, answer: &[u8]) {
        let addresses = asked.addresses(answer);
        if addresses.is_empty() {
            return;
        }
        let resolv_conf = match fs::read_to_string(RESOLV_CONF) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        };
        let believed = resolv_conf.map(|text| names::is_believed(unit, resolver, &text));
        let mut by_unit = self.lock();
        let table = by_unit.entry(unit.unit.clone()).or_default();
        if let Ok(true) = believed {
            return table.names.learn(&asked.name, &addresses, self.clock.elapsed());
        }
        if !std::mem::replace(&mut table.told, true) {
            let why = believed.err().map_or_else(
                || format!("is neither in {RESOLV_CONF} nor a network of [outbound]"),
                |error| format!("may be in {RESOLV_CONF}: {error}"),
            );
            let (unit, name) = (&unit.unit, &asked.name);
            eprintln!("<4>{unit} asked {resolver} for {name}, which {why}: the answer lets it call nothing");
        }
    }

    /// The names by which the unit knows this address now.
    pub fn names(&self, unit: &Unit, address: IpAddr) -> Vec<Arc<str>> {
        if !names::has_rules(unit) {
            return Vec::new();
        }
        let by_unit = self.lock();
        let table = by_unit.get(&unit.unit);
        table.map_or_else(Vec::new, |table| table.names.of(address, self.clock.elapsed()))
    }

    /// Forgets units that have no rule for a name any more.
    pub fn keep(&self, config: &Config) {
        self.lock()
            .retain(|unit, _| config.unit_by_name(unit).is_some_and(|unit| names::has_rules(unit)));
    }

    /// A panic while it was held leaves at worst an address without its name.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Table>> {
        self.by_unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
