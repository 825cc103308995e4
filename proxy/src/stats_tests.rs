//! Counts are exact, and bounded in number.

use hostmesh_proxy_core::flag::Flag;

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
                let row = worker.handle(Key {
                    route: "beta".into(),
                    ..key("a")
                });
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
    assert_eq!(
        (row.key(), row.code_class),
        (
            Key {
                route: "beta".into(),
                ..key("a")
            },
            "2xx"
        )
    );
    assert_eq!(row.buckets.iter().sum::<u64>(), 40_000);
    assert_eq!(row.buckets[0], 4 * 101, "0..=100 us belong to the first bucket");
    assert_eq!(row.duration_us_sum, 4 * (10_000 * 9_999 / 2));
    assert_eq!(all.denied["inventory.service.toml:7"], 40_000);
}

#[test]
fn what_has_no_room_counts_as_other_and_memory_is_bounded() {
    let stats = Stats::new();
    stats.series.limit(50);
    let workers = [stats.worker(), stats.worker()];
    for i in 0..200 {
        for worker in &workers {
            let row = worker.handle(key(&i.to_string()));
            row.record(CodeClass::Success, 1, 1, 1, 0);
            row.record(CodeClass::ServerError, 1, 1, 1, 0);
            row.flagged(Flag::Timeout);
        }
    }
    let all = stats.collect();
    let (others, known): (Vec<_>, Vec<_>) = all.traffic.iter().partition(|row| row.peer == "other");
    assert_eq!(
        (known.len(), others.len()),
        (50, 2),
        "25 peers and `other`, two classes each"
    );
    assert!(
        known.iter().all(|row| row.count == 2),
        "one series, whichever worker counts"
    );
    assert_eq!(others.iter().map(|row| row.count).sum::<u64>(), 2 * 2 * 175);
    assert!(all.series_dropped > 0);
    let flags: u64 = all
        .flags
        .values()
        .flat_map(BTreeMap::values)
        .map(|words| words["timeout"])
        .sum();
    assert_eq!(flags, 2 * 200);
    for worker in &workers {
        assert!(lock(&worker.shard.rows).len() <= 51);
    }
    let rules = MAX_RULES + 100;
    (0..rules).for_each(|i| workers[0].denied(&i.to_string()));
    assert_eq!(stats.collect().denied["other"], 100);
}

#[test]
fn who_is_quiet_makes_room_and_begins_at_zero() {
    let (hour, begun) = (Duration::from_secs(3600), Instant::now());
    let stats = Stats::new();
    stats.series.limit(2);
    let (one, two) = (stats.worker(), stats.worker());
    let ask = |worker: &WorkerStats, peer: &str| {
        worker.handle(key(peer)).record(CodeClass::Success, 1, 1, 1, 0);
    };
    let expire = |now: Instant| -> Vec<_> {
        let over = stats.expire(hour, now, |_| false);
        let mut peers: Vec<_> = over.iter().map(|key| key.peer.clone()).collect();
        peers.sort();
        peers
    };
    let open = one.handle(key("open"));
    open.record(CodeClass::Success, 1, 1, 1, 0);
    ask(&one, "quiet");
    ask(&two, "quiet");
    ask(&one, "late");
    assert!(expire(begun).is_empty());
    ask(&two, "quiet");
    assert!(
        !expire(begun + hour).contains(&"quiet".to_owned()),
        "it was asked since, in another worker"
    );
    assert_eq!(expire(begun + 2 * hour), ["quiet"]);
    let peers: Vec<_> = stats.collect().traffic.into_iter().map(|row| row.peer).collect();
    assert_eq!(peers, ["open", "other"], "a connection has the one");
    ask(&two, "late");
    ask(&one, "quiet");
    let all = stats.collect().traffic;
    let counts: Vec<_> = all.iter().map(|row| (&*row.peer, row.count)).collect();
    assert_eq!(counts, [("late", 1), ("open", 1), ("other", 2)]);
    drop(open);
    assert_eq!(expire(begun + 2 * hour + hour / 2), [] as [&str; 0]);
    assert_eq!(stats.series.count(), 2);
}

#[test]
fn what_found_no_room_finds_it_when_there_is_some() {
    let (stats, now) = (Stats::new(), Instant::now());
    let count = |row: &Row, class| {
        row.record(class, 1, 0, 0, 0);
    };
    let known = || -> Vec<_> {
        let all = stats.collect().traffic.into_iter();
        all.map(|row| (row.peer, row.code_class, row.count)).collect()
    };
    stats.series.limit(1);
    let (one, two) = (stats.worker(), stats.worker());
    let (first, second) = (one.handle(key("first")), two.handle(key("second")));
    count(&first, CodeClass::Success);
    (0..3).for_each(|_| count(&first, CodeClass::Error));
    assert_eq!(stats.series.dropped(), 3, "each is told");
    stats.series.limit(2);
    count(&first, CodeClass::Error);
    (0..2).for_each(|_| count(&second, CodeClass::Success));
    let said = |peer: &str, class, count| (peer.to_owned(), class, count);
    let (of_first, of_others) = (
        said("first", "2xx", 1),
        [said("other", "2xx", 2), said("other", "error", 3)],
    );
    assert_eq!(
        known(),
        [vec![of_first, said("first", "error", 1)], of_others.to_vec()].concat()
    );
    drop(first);
    let nobody = |_: &Key| false;
    assert!(stats.expire(Duration::from_secs(1), now, nobody).is_empty());
    assert_eq!(
        stats
            .expire(Duration::from_secs(1), now + Duration::from_secs(2), nobody)
            .len(),
        1
    );
    count(&second, CodeClass::Success);
    assert!(known().contains(&said("second", "2xx", 1)), "{:?}", known());
    let dropped = stats.series.dropped();
    let _third = two.handle(key("third"));
    assert_eq!(stats.series.dropped(), dropped, "it may find room yet");
    let fourth = two.handle(key("fourth"));
    assert_eq!(stats.series.dropped(), dropped + 1, "no more rows than series");
    count(&fourth, CodeClass::Denied);
    assert!(known().contains(&said("other", "denied", 1)), "{:?}", known());
}

#[test]
fn the_last_trace_of_each_bucket_is_kept() {
    let stats = Stats::new();
    let row = stats.worker().handle(key("a"));
    for (duration, trace) in [(50, 1), (60, 2), (2_000_000, 3)] {
        row.record(CodeClass::Success, duration, 0, 0, 0).exemplify(trace);
    }
    let all = stats.collect().traffic;
    let seen = all[0].exemplars.iter();
    let found: Vec<_> = seen.map(|one| (one.bucket, &*one.trace_id, one.duration_us)).collect();
    let (second, third) = (format!("{:032x}", 2), format!("{:032x}", 3));
    assert_eq!(found, [(0, &*second, 60), (13, &*third, 2_000_000)]);
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
