//! Rates hold over any run of arrivals, places come back, and counts outlive a change of config.

use proptest::prelude::*;

use super::*;
use crate::authorize::{Headers, Token};
use crate::config::Config;
use crate::snapshot;

const PEER: Caller<'static> = Caller::Identity("spiffe://mesh.local/unit/orders");
const OTHER: Caller<'static> = Caller::Identity("spiffe://mesh.local/unit/cart");

struct NoHeaders;

impl Headers for NoHeaders {
    fn each(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
    fn all(&self, _: &mut dyn FnMut(&[u8], &[u8])) {}
}

fn snapshot_unit() -> snapshot::Unit {
    let vector = include_str!("../../../tests/vectors/snapshot/h1.json");
    let snapshot: snapshot::Snapshot = serde_json::from_str(vector).expect("the vector");
    snapshot.units.into_iter().next().expect("a unit")
}

fn said(requests: u32, burst: u32, concurrent: u32, per: &str) -> snapshot::Limit {
    let of = snapshot::InboundRule {
        rule: "nginx.service.toml:9".to_owned(),
        callers: Vec::new(),
        ports: Vec::new(),
        methods: Vec::new(),
        paths: Vec::new(),
        headers: Vec::new(),
        jwt: None,
        audit: false,
    };
    snapshot::Limit {
        of,
        requests,
        window_ms: 1000,
        burst,
        concurrent,
        per: per.to_owned(),
    }
}

fn unit(limits: Vec<snapshot::Limit>) -> Unit {
    let said = snapshot::Unit {
        limits,
        ..snapshot_unit()
    };
    Config::unit(said).expect("a sound unit")
}

fn get<'a>(method: &'a str, path: &'a str) -> Request<'a> {
    Request {
        method,
        path,
        headers: &NoHeaders,
        token: Token::None,
    }
}

fn ask(unit: &Unit, caller: &Caller<'_>, millis: u64) -> Result<Vec<Slot>, Decision> {
    take(unit, caller, 80, Some(&get("GET", "/")), || {
        Duration::from_millis(millis)
    })
}

#[test]
fn a_burst_then_the_pace() {
    let unit = unit(vec![said(100, 10, 0, "caller")]);
    let admitted = (0..50_000)
        .filter(|tenth| {
            let now = Duration::from_micros(tenth * 100);
            take(&unit, &PEER, 80, Some(&get("GET", "/")), || now).is_ok()
        })
        .count();
    assert_eq!(
        admitted,
        10 + 5 * 100 - 1,
        "five seconds, the last millisecond not yet over"
    );
}

#[test]
fn who_is_over_it_is_told_when_to_come_again() {
    let unit = unit(vec![said(1, 2, 0, "caller")]);
    assert!(ask(&unit, &PEER, 0).is_ok() && ask(&unit, &PEER, 0).is_ok());
    let refused = ask(&unit, &PEER, 10).expect_err("two at once, no more");
    assert_eq!(
        (refused.verdict, &*refused.rule),
        (Verdict::Limited(1), "nginx.service.toml:9")
    );
    assert!(ask(&unit, &OTHER, 10).is_ok(), "another caller has a count of its own");
    assert!(ask(&unit, &PEER, 1000).is_ok() && ask(&unit, &PEER, 1000).is_err());
}

#[test]
fn one_count_for_all() {
    let unit = unit(vec![said(1, 1, 0, "all")]);
    assert!(ask(&unit, &PEER, 0).is_ok() && ask(&unit, &OTHER, 0).is_err());
}

#[test]
fn places_come_back_when_they_are_dropped() {
    let unit = unit(vec![said(0, 0, 2, "caller")]);
    let held = [ask(&unit, &PEER, 0).expect("one"), ask(&unit, &PEER, 0).expect("two")];
    assert_eq!(ask(&unit, &PEER, 0).expect_err("no third").verdict, Verdict::Limited(1));
    assert!(ask(&unit, &OTHER, 0).is_ok());
    drop(held);
    assert!(ask(&unit, &PEER, 0).is_ok());
}

#[test]
fn what_one_limit_refuses_no_other_has_counted() {
    let unit = unit(vec![said(1, 5, 5, "caller"), said(1, 1, 0, "all")]);
    let _first = ask(&unit, &PEER, 0).expect("the first");
    for _ in 0..20 {
        assert!(ask(&unit, &PEER, 0).is_err());
    }
    let count = unit.limits[0]
        .meter()
        .count("spiffe://mesh.local/unit/orders", Duration::ZERO);
    assert_eq!(count.in_flight.load(Relaxed), 1);
    assert_eq!(
        count.full_at.load(Relaxed),
        nanos(Duration::from_secs(1)),
        "one, not twenty-one"
    );
}

#[test]
fn a_change_of_config_keeps_what_was_counted() {
    let before = unit(vec![said(1, 1, 0, "all"), said(0, 0, 3, "caller")]);
    let held: Vec<_> = (0..1).map(|_| ask(&before, &PEER, 0)).collect();
    assert!(held[0].is_ok());
    let mut moved = said(0, 0, 1, "caller");
    moved.of.rule = "nginx.service.toml:12".to_owned();
    let after = unit(vec![moved, said(1, 1, 0, "all")]);
    Limit::follow(&after.limits, &before.limits);
    let refused = ask(&after, &PEER, 5000).expect_err("one is in flight still");
    assert_eq!(&*refused.rule, "nginx.service.toml:12");
    assert!(ask(&after, &OTHER, 500).is_err(), "the rate of all goes on");
    drop(held);
    assert!(ask(&after, &PEER, 5000).is_ok());
    let count = after.limits[0]
        .meter()
        .count("spiffe://mesh.local/unit/orders", Duration::ZERO);
    assert_eq!(count.in_flight.load(Relaxed), 0);
}

#[test]
fn a_limit_is_about_what_it_names() {
    let mut writes = said(1, 1, 0, "all");
    writes.of.methods = vec!["POST".to_owned()];
    writes.of.paths = vec!["/orders/*".to_owned()];
    let unit = unit(vec![writes]);
    let ask = |method, path| take(&unit, &PEER, 80, Some(&get(method, path)), || Duration::ZERO).is_ok();
    assert!(ask("GET", "/orders/1") && ask("POST", "/products") && ask("POST", "/orders/1"));
    assert!(
        !ask("POST", "/orders/2") && !ask("post", "/x/../orders/3"),
        "nor by another spelling"
    );
    let opaque = || take(&unit, &PEER, 80, None, || Duration::ZERO).is_ok();
    assert!(opaque() && opaque(), "bytes are no requests");
}

#[test]
fn audit_lets_pass_and_tells() {
    let said = snapshot::Unit {
        limits: vec![said(1, 1, 0, "all")],
        mode: "audit".to_owned(),
        ..snapshot_unit()
    };
    let unit = Config::unit(said).expect("a sound unit");
    assert!(ask(&unit, &PEER, 0).is_ok());
    assert_eq!(ask(&unit, &PEER, 0).expect_err("over it").verdict, Verdict::AuditDeny);
}

#[test]
fn callers_beyond_the_most_share_a_place_until_others_are_forgotten() {
    let unit = unit(vec![said(1, 1, 1, "caller")]);
    let address = |number: usize| Caller::Plaintext {
        address: std::net::Ipv4Addr::from(u32::try_from(number).expect("few")).into(),
        local: false,
    };
    let _held: Vec<_> = (0..MOST_CALLERS)
        .map(|number| ask(&unit, &address(number), 0).expect("its own"))
        .collect();
    let shared = ask(&unit, &address(MOST_CALLERS), 0).expect("the first of those beyond");
    assert!(
        ask(&unit, &address(MOST_CALLERS + 1), 0).is_err(),
        "they share one place"
    );
    drop((_held, shared));
    assert!(ask(&unit, &address(MOST_CALLERS + 1), 3000).is_ok());
    assert!(
        ask(&unit, &address(MOST_CALLERS + 2), 3000).is_ok(),
        "there is room again"
    );
}

proptest! {
    /// However requests arrive, no stretch of time sees more of them than burst and rate allow, and whoever waits as long as
    /// it is told gets in.
    #[test]
    fn no_stretch_of_time_sees_more(
        interval in 1..1_000_000_u64,
        burst in 1..50_u32,
        gaps in proptest::collection::vec(0..3_000_000_u64, 1..300),
    ) {
        let rate = Rate { interval: Duration::from_nanos(interval), burst };
        let (mut full_at, mut now, mut admitted) = (Duration::ZERO, Duration::ZERO, Vec::new());
        for gap in gaps {
            now += Duration::from_nanos(gap);
            match pace(rate, full_at, now) {
                Ok(then) => {
                    admitted.push(now);
                    full_at = then;
                }
                Err(wait) => {
                    prop_assert!(pace(rate, full_at, now + wait).is_ok());
                    prop_assert!(pace(rate, full_at, now + wait - Duration::from_nanos(1)).is_err());
                }
            }
        }
        for (first, begun) in admitted.iter().enumerate() {
            for (last, ended) in admitted.iter().enumerate().skip(first) {
                let most = u128::from(burst) + (*ended - *begun).as_nanos() / u128::from(interval);
                prop_assert!((last - first + 1) as u128 <= most);
            }
        }
    }
}
