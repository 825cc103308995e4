//! Limits hold, whoever takes; who fails is ejected, for longer each time, and never too many.

use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;

const POLICY: Outlier = Outlier {
    errors: 5,
    eject: Duration::from_secs(30),
    most: 0.5,
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fail(circuit: &Circuit, standing: &Standing, count: usize, now: Duration) -> Option<Duration> {
    (0..POLICY.errors).find_map(|_| circuit.failed(standing, &POLICY, count, now))
}

#[test]
fn copies_have_a_count_of_their_own() {
    let circuit = Circuit::default();
    assert!(circuit.take(Resource::Requests, 1));
    let take = || circuit.take_copy(2);
    assert_eq!([take(), take(), take()], [true, true, false]);
    circuit.give_copy();
    assert_eq!([take(), take()], [true, false]);
    assert_eq!(circuit.in_use(Resource::Requests), 1);
}

#[test]
fn a_breaker_opens_at_the_limit_and_closes_when_it_is_quiet() {
    let circuit = Circuit::default();
    let take = || circuit.take(Resource::Pending, 2);
    let refused = |now| circuit.refused(Resource::Pending, now);
    assert_eq!([take(), take(), take()], [true, true, false]);
    assert!(refused(at(1)), "it opens");
    assert!(!refused(at(2)));
    circuit.give(Resource::Pending);
    assert!(take(), "there is room: it is taken while the breaker counts as open");
    assert_eq!(circuit.close(Resource::Pending, at(2)), Err(QUIET));
    assert_eq!(circuit.close(Resource::Pending, at(3)), Ok(()));
    assert_eq!(circuit.in_use(Resource::Pending), 2);
    assert_eq!(circuit.refusals(Resource::Pending), (false, 2));
    assert!(!take() && refused(at(4)), "and opens again");
    assert_eq!(circuit.in_use(Resource::Requests), 0, "each has its own");
}

#[test]
fn a_limit_is_one_of_all_workers() {
    let circuit = Arc::new(Circuit::default());
    let most = Arc::new(AtomicU32::new(0));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (circuit, most) = (circuit.clone(), most.clone());
            thread::spawn(move || {
                for _ in 0..20_000 {
                    if circuit.take(Resource::Requests, 3) {
                        most.fetch_max(circuit.in_use(Resource::Requests), Relaxed);
                        circuit.give(Resource::Requests);
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("ended"));
    assert!((1..=3).contains(&most.load(Relaxed)));
    assert_eq!(circuit.in_use(Resource::Requests), 0);
}

#[test]
fn errors_one_after_the_other_eject() {
    let (circuit, standing) = (Circuit::default(), Standing::default());
    for _ in 0..4 {
        assert_eq!(circuit.failed(&standing, &POLICY, 2, at(0)), None);
    }
    standing.succeeded();
    for _ in 0..4 {
        assert_eq!(circuit.failed(&standing, &POLICY, 2, at(0)), None, "counted anew");
    }
    assert_eq!(circuit.failed(&standing, &POLICY, 2, at(0)), Some(at(30)));
    assert!(standing.is_ejected() && circuit.has_ejected());
    assert_eq!(fail(&circuit, &standing, 2, at(1)), None, "those that were under way");
    circuit.put_back(&standing);
    circuit.put_back(&standing);
    assert!(!standing.is_ejected() && !circuit.has_ejected());
    assert_eq!(circuit.counts(), (0, 1, 0));
}

#[test]
fn it_is_away_longer_each_time_until_it_has_stood() {
    let (circuit, standing) = (Circuit::default(), Standing::default());
    let mut now = 0;
    for row in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10] {
        let time = fail(&circuit, &standing, 2, at(now)).expect("ejected");
        assert_eq!(time, at(30 * row));
        now += time.as_secs();
        circuit.put_back(&standing);
        now += 1;
    }
    // Back, and well for as long as it was away.
    assert_eq!(fail(&circuit, &standing, 2, at(now + 300)), Some(at(30)));
}

proptest! {
    /// Whoever fails and comes back in whatever order: never more than the share is ejected.
    #[test]
    fn never_too_many(steps in proptest::collection::vec((0usize..8, any::<bool>()), 1..300), count in 1usize..8, most in 0.0f64..=1.0) {
        let circuit = Circuit::default();
        let all: Vec<Standing> = (0..count).map(|_| Standing::default()).collect();
        let policy = Outlier { errors: 1, most, ..POLICY };
        for (index, fails) in steps {
            let standing = &all[index % count];
            if fails {
                circuit.failed(standing, &policy, count, at(0));
            } else {
                circuit.put_back(standing);
            }
            let ejected = all.iter().filter(|standing| standing.is_ejected()).count();
            prop_assert!(ejected as f64 <= most * count as f64);
            prop_assert_eq!(circuit.counts().0 as usize, ejected);
        }
    }
}
