//! What may be tried again, when, and who pays.

use proptest::prelude::*;

use super::*;

fn policy(on: RetryOn) -> Retries {
    Retries {
        attempts: 3,
        per_try_timeout: None,
        on,
        budget: 0.2,
        non_idempotent: false,
        backoff: None,
    }
}

#[test]
fn what_is_repeated() {
    let connect = policy(RetryOn {
        connect_failure: true,
        ..RetryOn::default()
    });
    let server = policy(RetryOn {
        server_error: true,
        ..RetryOn::default()
    });
    let gateway = policy(RetryOn {
        gateway_error: true,
        ..RetryOn::default()
    });
    for (policy, failure, tries, method, replayable, expect) in [
        (connect, Failure::Connect, 1, "POST", true, true),
        (connect, Failure::Connect, 1, "POST", false, false),
        (connect, Failure::Connect, 3, "GET", true, false),
        (connect, Failure::Status(503), 1, "GET", true, false),
        (connect, Failure::Reset, 1, "GET", true, false),
        (server, Failure::Status(500), 2, "GET", true, true),
        (server, Failure::Status(500), 1, "POST", true, false),
        (server, Failure::Status(499), 1, "GET", true, false),
        (server, Failure::Reset, 1, "PUT", true, true),
        (gateway, Failure::Status(500), 1, "GET", true, false),
        (gateway, Failure::Status(503), 1, "GET", true, true),
        (gateway, Failure::TryTimeout, 1, "GET", true, true),
    ] {
        assert_eq!(
            may_retry(&policy, failure, tries, method, replayable),
            expect,
            "{failure:?} {tries} {method} {replayable}"
        );
    }
    for (on, failure, expect) in [
        ("retriable-4xx", Failure::Status(409), true),
        ("retriable-4xx", Failure::Status(425), true),
        ("retriable-4xx", Failure::Status(429), true),
        ("retriable-4xx", Failure::Status(404), false),
        ("retriable-4xx", Failure::Status(503), false),
        ("5xx", Failure::Status(429), false),
        ("unavailable", Failure::Grpc(14), true),
        ("unavailable", Failure::Grpc(13), false),
        ("cancelled", Failure::Grpc(1), true),
        ("deadline-exceeded", Failure::Grpc(4), true),
        ("resource-exhausted", Failure::Grpc(8), true),
        ("internal", Failure::Grpc(13), true),
        ("5xx", Failure::Grpc(14), false),
        ("unavailable", Failure::Grpc(99), false),
    ] {
        let on = RetryOn::of(&[on]).expect("a word of the policy");
        assert_eq!(
            may_retry(&policy(on), failure, 1, "GET", true),
            expect,
            "{on:?} {failure:?}"
        );
    }
    assert_eq!(RetryOn::of(&["sometimes"]), None);
    let any = Retries {
        non_idempotent: true,
        ..server
    };
    assert!(may_retry(&any, Failure::Status(500), 1, "POST", true));
}

#[test]
fn waits_grow_and_end() {
    assert_eq!(backoff(None, 1, 99), Duration::ZERO);
    assert_eq!(backoff(None, 2, 25_000), Duration::from_millis(25));
    assert_eq!(backoff(None, 60, 250_000), Duration::from_millis(250));
    let written = Some(Backoff {
        first: Duration::from_secs(1),
        most: Duration::from_secs(3),
    });
    for (tries, most) in [(1, 1), (2, 2), (3, 3), (60, 3)] {
        assert_eq!(backoff(written, tries, most * 1_000_000), Duration::from_secs(most));
        assert_eq!(
            backoff(written, tries, most * 1_000_000 + 1),
            Duration::ZERO,
            "never more"
        );
    }
}

#[test]
fn the_budget_comes_back() {
    let mut budget = Budget::default();
    let at = Duration::from_secs;
    assert!(!budget.take(0.0, at(100)));
    let taken = (0..100).filter(|_| budget.take(0.2, at(100))).count();
    assert_eq!(taken, 30, "the minimum of ten seconds");
    (0..250).for_each(|_| budget.request(at(105)));
    let taken = (0..100).filter(|_| budget.take(0.2, at(105))).count();
    assert_eq!(taken, 20, "a fifth of them, with those before");
    assert!(!budget.take(0.2, at(109)));
    assert!(budget.take(0.2, at(110)), "what second 100 took is forgotten");
}

proptest! {
    /// Whatever comes in whatever order: in no ten seconds more than the share and the minimum.
    #[test]
    fn never_beyond_the_share(steps in proptest::collection::vec((0u64..3, any::<bool>()), 1..400), share in 0.0f64..1.0) {
        let mut budget = Budget::default();
        let (mut now, mut requests, mut taken) = (0u64, Vec::new(), Vec::new());
        for (advance, is_request) in steps {
            now += advance;
            let at = Duration::from_secs(now);
            if is_request {
                budget.request(at);
                requests.push(now);
            } else if budget.take(share, at) {
                taken.push(now);
                let within = |times: &[u64]| times.iter().filter(|time| **time + 10 > now).count() as f64;
                prop_assert!(within(&taken) <= (within(&requests) * share).max(30.0));
            }
        }
    }
}

#[test]
fn what_is_hedged() {
    let hedge = |non_idempotent| Hedge {
        after: Duration::from_millis(100),
        attempts: 3,
        non_idempotent,
    };
    for (method, tries, non_idempotent, expect) in [
        ("GET", 1, false, true),
        ("GET", 2, false, true),
        ("GET", 3, false, false),
        ("PUT", 1, false, true),
        ("POST", 1, false, false),
        ("POST", 1, true, true),
        ("CONNECT", 1, false, false),
    ] {
        assert_eq!(
            may_hedge(&hedge(non_idempotent), tries, method),
            expect,
            "{method} after {tries}"
        );
    }
}
