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

#[test]
fn what_cannot_be_reached_is_avoided_until_it_was_reached_again() {
    let service = crate::config::tests::service("three", 3);
    let (mut loads, begin) = (Loads::default(), Instant::now());
    let gone = service.endpoints[1].id;
    let picks = |loads: &mut Loads| {
        (0..200u64)
            .filter(|random| {
                let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                loads.pick(&service, &[], random).expect("one").id == gone
            })
            .count()
    };
    assert!(picks(&mut loads) > 0);
    loads.unreachable(gone, begin);
    assert_eq!(picks(&mut loads), 0);
    loads.reached(gone);
    assert!(picks(&mut loads) > 0);
}

#[test]
fn where_nothing_else_is_left_it_is_taken() {
    let service = crate::config::tests::service("three", 3);
    let (mut loads, begin) = (Loads::default(), Instant::now());
    loads.unreachable(service.endpoints[0].id, begin);
    let tried: Vec<u64> = service.endpoints[1..].iter().map(|endpoint| endpoint.id).collect();
    let picked = loads.pick(&service, &tried, 7).expect("one").id;
    assert!(
        tried.contains(&picked),
        "one that answered with an error comes before one that is away"
    );
    for endpoint in &service.endpoints {
        loads.unreachable(endpoint.id, begin);
    }
    let picked = loads.pick(&service, &tried, 7).expect("one").id;
    assert_eq!(picked, service.endpoints[0].id);
}

#[test]
fn it_is_tried_by_one_at_a_time_and_less_and_less_often() {
    let service = crate::config::tests::service("two", 2);
    let (mut loads, mut now) = (Loads::default(), Instant::now());
    let gone = service.endpoints[0].id;
    loads.unreachable(gone, now);
    loads.unreachable(gone, now); // who waited for the same dial
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        let long_enough = now + Duration::from_secs(wait);
        assert!(loads.due(&service, long_enough - Duration::from_millis(1)).is_none());
        assert_eq!(loads.due(&service, long_enough).expect("its time").id, gone);
        assert!(loads.due(&service, long_enough).is_none(), "somebody is trying");
        now = long_enough + Duration::from_secs(2);
        loads.unreachable(gone, now);
    }
    loads.sweep(now + Duration::from_secs(60));
    assert!(loads.due(&service, now + Duration::from_secs(60)).is_some());
    loads.sweep(now + Duration::from_secs(3600));
    assert!(
        loads.due(&service, now + Duration::from_secs(3600)).is_none(),
        "forgotten"
    );
}
