//! Counts are exact, and bounded in number.

use super::*;

fn key(peer: &str) -> Key {
    Key {
        unit: "inventory.service".into(),
        direction: "inbound",
        peer: peer.into(),
        service: "inventory".into(),
        route: String::new(),
        port: 8080,
        protocol: "http",
    }
}

#[test]
fn four_threads_count_exactly() {
    let stats = Stats::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let worker = stats.worker();
            scope.spawn(move || {
                let row = worker.handle(key("a"));
                for i in 0..10_000u64 {
                    row.record(CodeClass::of_status(200), i, 2, 3, i % 2);
                    worker.denied("inventory.service.toml:7");
                }
            });
        }
    });
    let all = stats.collect();
    assert_eq!(all.traffic.len(), 1);
    let row = &all.traffic[0];
    assert_eq!(
        (row.count, row.bytes_in, row.bytes_out, row.retries),
        (40_000, 80_000, 120_000, 20_000)
    );
    assert_eq!(row.code_class, "2xx");
    assert_eq!(row.buckets.iter().sum::<u64>(), 40_000);
    assert_eq!(row.buckets[0], 4 * 101, "0..=100 us belong to the first bucket");
    assert_eq!(row.duration_us_sum, 4 * (10_000 * 9_999 / 2));
    assert_eq!(all.denied["inventory.service.toml:7"], 40_000);
}

#[test]
fn too_many_names_count_as_other() {
    let stats = Stats::new();
    let worker = stats.worker();
    for i in 0..MAX_SERIES + 100 {
        worker.handle(key(&i.to_string())).record(CodeClass::Ok, 1, 1, 1, 0);
        worker.denied(&i.to_string());
    }
    let all = stats.collect();
    assert_eq!(all.traffic.len(), MAX_SERIES + 1);
    let other = all
        .traffic
        .iter()
        .find(|row| row.peer == "other")
        .expect("an overflow row");
    assert_eq!(other.count, 100);
    assert_eq!(
        all.traffic.iter().map(|row| row.count).sum::<u64>(),
        (MAX_SERIES + 100) as u64
    );
    assert_eq!(all.denied["other"], 100);
}

#[test]
fn durations_beyond_the_last_bound_and_gauges() {
    let stats = Stats::new();
    let (one, two) = (stats.worker(), stats.worker());
    one.handle(key("a")).record(CodeClass::Error, 60_000_001, 0, 0, 0);
    assert_eq!(stats.collect().traffic[0].buckets[BOUNDS_US.len()], 1);
    let held = one.hold(Gauge::Connections);
    two.add(Gauge::Connections, 2);
    two.tls_failure("server", Reason::Expired);
    assert_eq!(stats.gauge(Gauge::Connections), 3);
    drop(held);
    one.tls_failure("server", Reason::Expired);
    let all = stats.collect();
    assert_eq!(
        (all.gauges["connections"], all.tls_failures["server"]["expired"]),
        (2, 2)
    );
}
