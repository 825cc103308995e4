//! Which endpoint is taken, and that load is spread.

use proptest::prelude::*;

use super::*;
use crate::config::tests::{sample, service};
use crate::config::{Breaker, ConsistentHash, Distance, HashOn, Outlier};

fn ask(random: u64) -> Ask<'static> {
    Ask {
        tried: &[],
        random,
        now: Instant::now(),
        key: None,
    }
}

/// How often each endpoint is taken, in their order; each request is over before the next.
fn counts(loads: &mut Loads, service: &Service, ask: Ask<'_>, requests: u64) -> Vec<u64> {
    let mut counts = vec![0; service.endpoints.len()];
    for request in 0..requests {
        let random = hash::mix(request);
        let picked = loads.pick(service, Ask { random, ..ask }).expect("an endpoint").id;
        let index = service.endpoints.iter().position(|endpoint| endpoint.id == picked);
        counts[index.expect("of the service")] += 1;
    }
    counts
}

fn is_about(count: u64, share: f64, of: u64) -> bool {
    // Five standard deviations.
    let (mean, spread) = (share * of as f64, (of as f64 * share * (1.0 - share)).sqrt());
    (count as f64 - mean).abs() <= 5.0 * spread
}

/// The service with these of its endpoints ejected, and no others.
fn eject(service: &mut Service, ejected: &[u64]) {
    let all = Outlier {
        errors: 1,
        eject: Duration::from_secs(30),
        most: 1.0,
    };
    service.traffic.breaker = Some(Breaker {
        limits: [None; 4],
        outlier: Some(all),
        rule: "".into(),
    });
    let (circuit, count) = (service.circuit(), service.endpoints.len());
    for endpoint in &service.endpoints {
        circuit.put_back(endpoint.standing());
        if ejected.contains(&endpoint.id) {
            let time = circuit.failed(endpoint.standing(), &all, count, Duration::ZERO);
            assert!(time.is_some());
        }
    }
}

fn placed(hosts: &[Distance]) -> Service {
    let mut service = service("placed", hosts.len());
    service.traffic.prefer_near = true;
    for (endpoint, distance) in service.endpoints.iter_mut().zip(hosts) {
        Arc::get_mut(endpoint).expect("not shared").distance = *distance;
    }
    service
}

#[test]
fn the_less_busy_of_two() {
    let config = sample("h2");
    let mut service = service("three", 3);
    service.traffic.balance = Balance::LeastRequest;
    let mut loads = Loads::default();
    loads.begin(&service.endpoints[0]);
    loads.begin(&service.endpoints[0]);
    loads.begin(&service.endpoints[1]);
    let mut counts = [0; 3];
    for random in 0..6000u64 {
        let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let picked = loads.pick(&service, ask(random)).expect("an endpoint");
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
            .pick(config.service_by_name("orders").expect("orders"), ask(9))
            .is_ok()
    );
}

#[test]
fn one_after_the_other() {
    let mut service = service("three", 3);
    service.traffic.balance = Balance::RoundRobin;
    let mut loads = Loads::default();
    let ids: Vec<u64> = (0..6)
        .filter_map(|_| loads.pick(&service, ask(0)).ok().map(|endpoint| endpoint.id))
        .collect();
    assert_eq!(ids[..3], ids[3..]);
    assert_eq!(std::collections::HashSet::<u64>::from_iter(ids).len(), 3);
}

#[test]
fn another_after_a_failure() {
    let service = service("three", 3);
    let mut loads = Loads::default();
    let tried: Vec<u64> = service.endpoints[..2].iter().map(|endpoint| endpoint.id).collect();
    for random in 0..100 {
        assert_eq!(
            loads
                .pick(
                    &service,
                    Ask {
                        tried: &tried,
                        ..ask(random)
                    }
                )
                .expect("one")
                .id,
            service.endpoints[2].id
        );
    }
    let all: Vec<u64> = service.endpoints.iter().map(|endpoint| endpoint.id).collect();
    assert!(
        loads.pick(&service, Ask { tried: &all, ..ask(1) }).is_ok(),
        "all failed: again any"
    );
    let none = self::service("none", 0);
    assert_eq!(loads.pick(&none, ask(1)).expect_err("nobody"), Fault::NoEndpoint);
}

#[test]
fn what_cannot_be_reached_is_avoided_until_it_was_reached_again() {
    let service = service("three", 3);
    let (mut loads, begin) = (Loads::default(), Instant::now());
    let gone = service.endpoints[1].id;
    let picks = |loads: &mut Loads| {
        (0..200u64)
            .filter(|random| {
                let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                loads.pick(&service, ask(random)).expect("one").id == gone
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
    let service = service("three", 3);
    let (mut loads, begin) = (Loads::default(), Instant::now());
    loads.unreachable(service.endpoints[0].id, begin);
    let tried: Vec<u64> = service.endpoints[1..].iter().map(|endpoint| endpoint.id).collect();
    let picked = loads
        .pick(
            &service,
            Ask {
                tried: &tried,
                ..ask(7)
            },
        )
        .expect("one")
        .id;
    assert!(
        tried.contains(&picked),
        "one that answered with an error comes before one that is away"
    );
    for endpoint in &service.endpoints {
        loads.unreachable(endpoint.id, begin);
    }
    let picked = loads
        .pick(
            &service,
            Ask {
                tried: &tried,
                ..ask(7)
            },
        )
        .expect("one")
        .id;
    assert_eq!(picked, service.endpoints[0].id);
}

#[test]
fn it_is_tried_by_one_at_a_time_and_less_and_less_often() {
    let service = service("two", 2);
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

#[test]
fn the_quicker_one_by_latency() {
    let mut service = service("three", 3);
    service.traffic.balance = Balance::Ewma;
    let (mut loads, at) = (Loads::default(), ask(0));
    let took = |loads: &mut Loads, index: usize, ms: u64, failed: bool| {
        let id = service.endpoints[index].id;
        loads.answered(id, Duration::from_millis(ms), failed, at.now);
    };
    took(&mut loads, 0, 5, false);
    took(&mut loads, 1, 100, false);
    took(&mut loads, 2, 1, true);
    let counts = counts(&mut loads, &service, at, 6000);
    assert_eq!(counts[2], 0, "a failure is no quick answer");
    assert!(
        is_about(counts[0], 2.0 / 3.0, 6000) && is_about(counts[1], 1.0 / 3.0, 6000),
        "{counts:?}"
    );
}

#[test]
fn the_same_key_the_same_endpoint() {
    let mut service = service("three", 3);
    let by = |bound| {
        Balance::ConsistentHash(ConsistentHash {
            on: HashOn::Source,
            bound,
        })
    };
    service.traffic.balance = by(None);
    let mut loads = Loads::default();
    let with_key = |key| Ask {
        key: Some(key),
        ..ask(0)
    };
    for key in 0..100 {
        let counts = counts(&mut loads, &service, with_key(key), 20);
        assert_eq!(counts.iter().filter(|count| **count > 0).count(), 1);
    }
    let first = loads.pick(&service, with_key(7)).expect("one").clone();
    let failed = Ask {
        tried: &[first.id],
        ..with_key(7)
    };
    let second = loads.pick(&service, failed).expect("one").id;
    assert_ne!(second, first.id, "another try goes to the next");
    assert_eq!(
        loads.pick(&service, failed).expect("one").id,
        second,
        "which is always the same"
    );
    service.traffic.balance = by(Some(1.5));
    (0..2).for_each(|_| loads.begin(&first));
    assert_eq!(
        loads.pick(&service, with_key(7)).expect("one").id,
        second,
        "full: the next"
    );
    let counts = counts(&mut Loads::default(), &service, ask(0), 3000);
    assert!(
        counts.iter().all(|count| is_about(*count, 1.0 / 3.0, 3000)),
        "without a key by chance: {counts:?}"
    );
}

#[test]
fn near_first_by_the_capacity_left() {
    use Distance::{Far, Host, Zone};
    let mut service = placed(&[Far, Far, Zone, Zone, Zone, Zone, Host]);
    let id = |index: usize| service.endpoints[index].id;
    let (here, zone, all) = (id(6), [id(2), id(3), id(4), id(5)], 10_000);
    let mut shares = |ejected: &[u64]| {
        eject(&mut service, ejected);
        counts(&mut Loads::default(), &service, ask(0), all)
    };
    assert_eq!(shares(&[])[6], all, "this host");
    let counts = shares(&[here]);
    assert_eq!(counts[2..6].iter().sum::<u64>(), all, "this zone: {counts:?}");
    let counts = shares(&[here, zone[0]]);
    assert_eq!(counts[3..6].iter().sum::<u64>(), all, "three of four do");
    let counts = shares(&[here, zone[0], zone[1]]);
    assert!(
        is_about(counts[4] + counts[5], 0.7, all),
        "half of it carries seven in ten: {counts:?}"
    );
    assert!(is_about(counts[0] + counts[1], 0.3, all), "{counts:?}");
    let counts = shares(&[here, zone[0], zone[1], zone[2], zone[3]]);
    assert_eq!(counts[0] + counts[1], all, "all the others");
    let mut anywhere = placed(&[Far, Host]);
    anywhere.traffic.prefer_near = false;
    assert!(
        counts_of_both(&anywhere).iter().all(|count| *count > 400),
        "as it is by default"
    );
}

fn counts_of_both(service: &Service) -> Vec<u64> {
    counts(&mut Loads::default(), service, ask(0), 1000)
}

#[test]
fn a_share_grows_with_age() {
    for balance in [Balance::LeastRequest, Balance::RoundRobin] {
        let mut service = service("four", 4);
        service.traffic.slow_start = Some(Duration::from_secs(30));
        service.traffic.balance = balance;
        let begin = Instant::now();
        service.endpoints[3].joined.set(begin).expect("once");
        let share = |seconds| {
            let now = begin + Duration::from_secs(seconds);
            counts(&mut Loads::default(), &service, Ask { now, ..ask(0) }, 20_000)[3] as f64 / 20_000.0
        };
        let ramp = [0, 6, 15, 24, 30, 300].map(share);
        for (share, expect) in ramp.iter().zip([0.025, 0.05, 0.125, 0.2, 0.25, 0.25]) {
            assert!((share - expect).abs() < 0.015, "{ramp:?}");
        }
    }
}

#[test]
fn panic_counts_all_as_healthy() {
    let mut service = service("four", 4);
    let ids: Vec<u64> = service.endpoints.iter().map(|endpoint| endpoint.id).collect();
    let taken = |service: &mut Service, ejected: &[u64]| {
        eject(service, ejected);
        let counts = counts(&mut Loads::default(), service, ask(0), 1000);
        counts.iter().filter(|count| **count > 0).count()
    };
    assert_eq!(taken(&mut service, &ids[..3]), 1, "by default the last one carries all");
    eject(&mut service, &ids);
    let nobody = Loads::default().pick(&service, ask(0)).expect_err("nobody");
    assert_eq!(nobody, Fault::Ejected);
    service.traffic.panic = 0.5;
    assert_eq!(taken(&mut service, &ids[..2]), 2, "half is enough");
    assert_eq!(taken(&mut service, &ids[..3]), 4);
    assert_eq!(taken(&mut service, &ids), 4);
    let mut loads = Loads::default();
    loads.unreachable(ids[3], Instant::now());
    service.traffic.panic = 0.0;
    eject(&mut service, &ids[..3]);
    let picked = loads.pick(&service, ask(3)).expect("one");
    assert_eq!(picked.id, ids[3], "away comes before ejected: it may be back");
}

proptest! {
    /// Whoever is away, ejected or tried: an endpoint of the service is taken, an ejected one only in panic, a tried one
    /// only where every healthy one was.
    #[test]
    fn never_one_that_is_out(count in 1usize..9, bits in any::<(u8, u8, u8)>(), panic in 0.0f64..1.0, random in any::<u64>()) {
        let mut service = service("some", count);
        service.traffic.panic = panic;
        let ids: Vec<u64> = service.endpoints.iter().map(|endpoint| endpoint.id).collect();
        let some = |bits: u8| -> Vec<u64> { (0..count).filter(|i| bits >> i & 1 == 1).map(|i| ids[i]).collect() };
        let (away, ejected, tried) = (some(bits.0), some(bits.1), some(bits.2));
        let mut loads = Loads::default();
        away.iter().for_each(|id| loads.unreachable(*id, Instant::now()));
        eject(&mut service, &ejected);
        let picked = loads.pick(&service, Ask { tried: &tried, ..ask(random) }).map(|e| e.id);
        let healthy: Vec<u64> = ids.iter().copied().filter(|id| !away.contains(id) && !ejected.contains(id)).collect();
        let in_panic = (healthy.len() as f64) < panic * count as f64;
        match picked {
            Err(fault) => prop_assert!(fault == Fault::Ejected && ejected.len() == count && !in_panic),
            Ok(id) if !in_panic && !healthy.is_empty() => {
                prop_assert!(healthy.contains(&id));
                prop_assert!(!tried.contains(&id) || healthy.iter().all(|id| tried.contains(id)));
            }
            Ok(id) => prop_assert!(ids.contains(&id) && (in_panic || !ejected.contains(&id))),
        }
    }
}
