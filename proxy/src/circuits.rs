//! Turns what callers of a service have in common into counts for metrics.

use std::collections::BTreeMap;

use hostmesh_proxy_core::balance::circuit::Resource;
use hostmesh_proxy_core::config::{Config, Service};
use serde::{Deserialize, Serialize};

/// `Circuit` of `hostmesh/wire/proxy_control.py`. By resource: connections, pending, requests, retries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CircuitCount {
    /// How much may be in use.
    pub limits: BTreeMap<String, u32>,
    /// How much is.
    pub in_use: BTreeMap<String, u32>,
    /// Whether the breaker is open: 0, 1.
    pub open: BTreeMap<String, u32>,
    /// Refusals since the start.
    pub refused: BTreeMap<String, u64>,
    /// Endpoints that are ejected.
    pub ejected: u32,
    /// Ejections since the start.
    pub ejections: u64,
    /// Retries since the start that the budget did not pay for.
    pub unpaid: u64,
}

/// Of all services that are called by such a policy.
pub fn counted(config: &Config) -> BTreeMap<String, CircuitCount> {
    let services = config.services.iter();
    let counted = services.filter(|service| {
        let traffic = &service.traffic;
        let by_route = || {
            traffic
                .routes
                .iter()
                .any(|route| route.retries.is_some() || route.hedge.is_some())
        };
        traffic.breaker.is_some() || traffic.retries.is_some() || traffic.hedge.is_some() || by_route()
    });
    counted.map(|service| (service.name.to_string(), of(service))).collect()
}

fn of(service: &Service) -> CircuitCount {
    let circuit = service.circuit();
    let (ejected, ejections, unpaid) = circuit.counts();
    let mut count = CircuitCount {
        ejected,
        ejections,
        unpaid,
        ..CircuitCount::default()
    };
    let Some(breaker) = &service.traffic.breaker else {
        return count;
    };
    for resource in Resource::ALL {
        let word = || resource.word().to_owned();
        let (is_open, refused) = circuit.refusals(resource);
        count
            .limits
            .extend(breaker.limit(resource).map(|limit| (word(), limit)));
        count.in_use.insert(word(), circuit.in_use(resource));
        count.open.insert(word(), is_open.into());
        count.refused.insert(word(), refused);
    }
    count
}

impl CircuitCount {
    /// Adds what another process counted. Each has its limits for itself.
    pub fn add(&mut self, other: &Self) {
        for (word, limit) in &other.limits {
            self.limits.entry(word.clone()).or_insert(*limit);
        }
        for (sums, more) in [(&mut self.in_use, &other.in_use), (&mut self.open, &other.open)] {
            for (word, count) in more {
                *sums.entry(word.clone()).or_default() += count;
            }
        }
        for (word, count) in &other.refused {
            *self.refused.entry(word.clone()).or_default() += count;
        }
        self.ejected += other.ejected;
        self.ejections += other.ejections;
        self.unpaid += other.unpaid;
    }

    /// Without what is over when its process is.
    pub fn without_levels(self) -> Self {
        Self {
            refused: self.refused,
            ejections: self.ejections,
            unpaid: self.unpaid,
            ..Self::default()
        }
    }
}
