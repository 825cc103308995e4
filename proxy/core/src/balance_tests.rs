//! Which endpoint is taken, and that load is spread.

use super::*;
use crate::config::tests::sample;

#[test]
fn the_less_busy_of_two() {
    let config = sample("h2");
    let mut service = crate::config::tests::service("three", 3);
    service.traffic.balance = Balance::LeastRequest;
    let mut loads = Loads::default();
    loads.begin(&service.endpoints[0]);
    loads.begin(&service.endpoints[0]);
    loads.begin(&service.endpoints[1]);
    let mut counts = [0; 3];
    for random in 0..6000u64 {
        let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let picked = loads.pick(&service, &[], random).expect("an endpoint");
        counts[service
            .endpoints
            .iter()
            .position(|e| e.id == picked.id)
            .expect("of the service")] += 1;
    }
    assert_eq!(counts[0], 0, "the busiest loses every pair");
    assert!(counts[1] > 1500 && counts[2] > 3500, "{counts:?}");
    loads.end(service.endpoints[0].id);
    loads.end(service.endpoints[0].id);
    assert_eq!(loads.in_flight(service.endpoints[0].id), 0);
    loads.end(service.endpoints[0].id);
    assert_eq!(loads.in_flight(service.endpoints[0].id), 0, "never below nothing");
    assert!(
        loads
            .pick(config.service_by_name("orders").expect("orders"), &[], 9)
            .is_some()
    );
}

#[test]
fn one_after_the_other() {
    let mut service = crate::config::tests::service("three", 3);
    service.traffic.balance = Balance::RoundRobin;
    let mut loads = Loads::default();
    let ids: Vec<u64> = (0..6)
        .filter_map(|_| loads.pick(&service, &[], 0).map(|endpoint| endpoint.id))
        .collect();
    assert_eq!(ids[..3], ids[3..]);
    assert_eq!(std::collections::HashSet::<u64>::from_iter(ids).len(), 3);
}

#[test]
fn another_after_a_failure() {
    let service = crate::config::tests::service("three", 3);
    let mut loads = Loads::default();
    let tried: Vec<u64> = service.endpoints[..2].iter().map(|endpoint| endpoint.id).collect();
    for random in 0..100 {
        assert_eq!(
            loads.pick(&service, &tried, random).expect("one").id,
            service.endpoints[2].id
        );
    }
    let all: Vec<u64> = service.endpoints.iter().map(|endpoint| endpoint.id).collect();
    assert!(loads.pick(&service, &all, 1).is_some(), "all failed: again any");
    assert!(loads.pick(&crate::config::tests::service("none", 0), &[], 1).is_none());
}
