//! The sample snapshots of both languages, and what is refused in them.

use super::*;

const H1: &str = include_str!("../../../tests/vectors/snapshot/h1.json");
const H2: &str = include_str!("../../../tests/vectors/snapshot/h2.json");

fn snapshot(host: &str) -> Snapshot {
    serde_json::from_str(if host == "h1" { H1 } else { H2 }).expect("a sample snapshot")
}

/// The configuration of a sample host, `h1` or `h2`.
pub(crate) fn sample(host: &str) -> Config {
    Config::build(snapshot(host)).expect("a sound snapshot")
}

/// The same while every service's units are stopped.
pub(crate) fn without_endpoints(host: &str) -> Config {
    let mut bare = snapshot(host);
    bare.services.iter_mut().for_each(|service| service.endpoints.clear());
    Config::build(bare).expect("a sound snapshot")
}

/// A unit of a sample host as it is sent.
pub(crate) fn sample_unit(host: &str, unit: &str) -> snapshot::Unit {
    let mut units = snapshot(host).units.into_iter();
    units.find(|found| found.unit == unit).expect("a unit of the sample")
}

/// A service on so many hosts.
pub(crate) fn service(name: &str, hosts: usize) -> Service {
    let mut made = snapshot("h1").services.remove(0);
    let endpoint = made.endpoints.remove(0);
    made.name = name.to_owned();
    made.endpoints = (0..hosts)
        .map(|host| snapshot::Endpoint {
            host: format!("s{host}"),
            ..endpoint.clone()
        })
        .collect();
    compile::service(made, ("h1", ""), &HashMap::new()).expect("a service")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn samples_read_and_write_back() {
    for text in [H1, H2] {
        let read: Snapshot = serde_json::from_str(text).expect("a snapshot");
        let written = serde_json::to_value(&read).expect("JSON");
        let mut said: serde_json::Value = serde_json::from_str(text).expect("JSON");
        for service in said["services"].as_array_mut().expect("a list") {
            let lines = service["traffic"].as_object_mut().expect("an object").remove("lines");
            assert!(lines.is_some(), "for people, and left aside here");
        }
        assert_eq!(written, said, "no other field lost");
        Config::build(read).expect("a sound snapshot");
    }
    let unknown = H1.replacen("\"version\"", "\"versoin\": 1, \"version\"", 1);
    let error = serde_json::from_str::<Snapshot>(&unknown).expect_err("an unknown field");
    assert!(error.to_string().contains("versoin"), "{error}");
}

#[test]
fn timeouts_have_defaults_and_are_not_none() {
    let mut without: serde_json::Value = serde_json::from_str(H1).expect("JSON");
    without.as_object_mut().expect("an object").remove("timeouts");
    let kept = serde_json::from_value(without).expect("a snapshot of before");
    let timeouts = Config::build(kept).expect("sound").timeouts;
    assert_eq!(timeouts, sample("h1").timeouts, "the sample says the defaults");
    assert_eq!(timeouts.stall, Duration::from_secs(300));
    let mut none = snapshot("h1");
    none.timeouts.head_ms = 0;
    let error = Config::build(none).expect_err("refused").to_string();
    assert!(error.contains("timeouts"), "{error}");
}

#[test]
fn what_joins_is_told_from_what_was_there() {
    let (mut first, mut second) = (sample("h1"), sample("h1"));
    let begin = Instant::now();
    first.follow(&without_endpoints("h1"), begin);
    let joined = |config: &Config| {
        let endpoints = &config.service_by_name("inventory").expect("inventory").endpoints;
        endpoints
            .iter()
            .map(|endpoint| endpoint.joined.get().copied())
            .collect::<Vec<_>>()
    };
    assert_eq!(joined(&first), [None], "nobody was there: nobody is behind");
    second.services = vec![Arc::new(service("inventory", 2))];
    second.follow(&first, begin);
    assert_eq!(second.services[0].endpoints[1].joined.get(), Some(&begin));
    let mut third = sample("h1");
    third.services = vec![Arc::new(service("inventory", 2))];
    second.by_name.insert("inventory".into(), second.services[0].clone());
    third.follow(&second, begin + Duration::from_secs(9));
    assert_eq!(third.services[0].endpoints[1].joined.get(), Some(&begin), "kept");
}

#[test]
fn traffic_of_before_loads() {
    let mut old = serde_json::to_value(snapshot("h1")).expect("JSON");
    for service in old["services"].as_array_mut().expect("a list") {
        let traffic = service["traffic"].as_object_mut().expect("an object");
        traffic.retain(|name, _| ["timeout_ms", "retries", "balance", "rule"].contains(&&**name));
        traffic["balance"] = "round-robin".into();
        let endpoints = service["endpoints"].as_array_mut().expect("a list");
        endpoints
            .iter_mut()
            .for_each(|e| _ = e.as_object_mut().expect("an object").remove("zone"));
    }
    Config::build(serde_json::from_value(old).expect("a snapshot of before")).expect("sound");
}

#[test]
fn units_are_found() {
    let config = sample("h2");
    let redis = config.unit_by_mark(0x0100_0fff).expect("redis");
    assert_eq!(&*redis.unit, "redis-server.service");
    assert!(config.unit_by_mark(0x0000_0fff).is_none(), "no intercepted packet");
    assert!(config.unit_by_mark(0x0100_0009).is_none());
    assert_eq!(
        config
            .unit_by_sni("Inventory.unit.mesh.local")
            .expect("inventory")
            .number,
        1
    );
    assert_eq!(config.unit_by_port(5432).expect("postgresql").number, 3);
    assert_eq!(&*redis.rule_plaintext_default, "redis-server.service.toml:no-plaintext");
}

#[test]
fn destinations() {
    let config = sample("h1");
    let describe = |address: &str, port: u16| match config.destination(ip(address), port) {
        Destination::Service { service, port } => format!("{} {}", service.name, port.target),
        Destination::Endpoint {
            service,
            port,
            endpoint,
        } => {
            format!("{} {} at {}", service.name, port.target, endpoint.host)
        }
        Destination::LocalUnit { unit, port } => format!("{} {}", unit.unit, port.port),
        Destination::UndeclaredPort(service) => format!("{} undeclared", service.name),
        Destination::Passthrough => "passthrough".to_owned(),
    };
    for (address, port, expect) in [
        ("240.240.0.11", 80, "inventory 8080"),
        ("fd00:240::b", 8080, "inventory 8080"),
        ("::ffff:240.240.0.11", 80, "inventory 8080"),
        ("240.240.0.11", 81, "inventory undeclared"),
        ("198.18.1.2", 8080, "inventory 8080 at h2"),
        ("2001:2::1:2", 6379, "redis-server 6379 at h2"),
        ("198.18.1.2", 81, "passthrough"),
        ("198.18.1.1", 80, "nginx.service 80"),
        ("127.0.0.1", 80, "nginx.service 80"),
        ("::1", 8000, "orders.service 8000"),
        ("127.0.0.1", 8080, "passthrough"),
        ("203.0.113.9", 443, "passthrough"),
    ] {
        assert_eq!(describe(address, port), expect, "{address} {port}");
    }
    let nginx = config.service_by_name("nginx").expect("nginx");
    let local: Vec<bool> = nginx
        .endpoints
        .iter()
        .map(|endpoint| endpoint.local.is_some())
        .collect();
    assert_eq!(local, [true, false], "only the endpoint on h1");
    let again = sample("h2");
    let ids = |service: &Service| service.endpoints.iter().map(|endpoint| endpoint.id).collect::<Vec<_>>();
    assert_eq!(ids(nginx), ids(again.service_by_name("nginx").expect("nginx")));
}

#[test]
fn a_vip_is_its_services_with_no_endpoint_too() {
    let config = without_endpoints("h1");
    for address in ["240.240.0.11", "fd00:240::b"] {
        let Destination::Service { service, port } = config.destination(ip(address), 80) else {
            panic!("{address} leads elsewhere")
        };
        assert_eq!((&*service.name, port.target), ("inventory", 8080));
    }
}

#[test]
fn bad_snapshots_are_refused_with_the_reason() {
    type Break = fn(&mut Snapshot);
    let cases: &[(Break, &str)] = &[
        (|s| s.version = 2, "snapshot version 2, this proxy reads 1"),
        (
            |s| s.units[1].number = 1,
            "number 1 is taken twice: by nginx.service and orders.service",
        ),
        (|s| s.units[1].number = 4096, "\"4096\" is not a number 1..4095"),
        (
            |s| s.units[1].ports[0].port = 80,
            "port 80 is taken twice: by nginx.service and orders.service",
        ),
        (
            |s| s.units[1].sni = s.units[0].sni.clone(),
            "is taken twice: by nginx.service and orders.service",
        ),
        (
            |s| s.units[0].ports[0].protocol = "htpt".into(),
            "unit nginx.service: \"htpt\" is not a protocol",
        ),
        (
            |s| s.units[0].ports[0].client_address = "x".into(),
            "not a client_address",
        ),
        (|s| s.units[0].mode = "".into(), "not a mode"),
        (|s| s.units[0].access_log = "".into(), "not an access_log"),
        (|s| s.units[0].trace = 1.5, "not a share"),
        (|s| s.units[0].spiffe_id = "nginx".into(), "not a SPIFFE ID"),
        (
            |s| s.units[0].deliver = vec!["localhost".into()],
            "\"localhost\" is not an IP address",
        ),
        (
            |s| s.units[0].allow[0].paths = vec!["/a/*/b".into()],
            "not a path pattern",
        ),
        (|s| s.units[0].allow[0].paths = vec!["a".into()], "not a path pattern"),
        (|s| s.trust_bundle = vec!["***".into()], "not base64"),
        (|s| s.addresses = vec!["198.18.1.256".into()], "not an IP address"),
        (
            |s| s.services[0].vips = vec!["240.240.0.12".into()],
            "VIP 240.240.0.12 is taken twice",
        ),
        (|s| s.services[0].ports[1].port = 80, "port 80 is taken twice"),
        (|s| s.services[0].name = "nginx".into(), "service nginx is taken twice"),
        (
            |s| s.services[0].traffic.balance = "random".into(),
            "service inventory: \"random\" is not a balance",
        ),
        (
            |s| s.services[0].traffic.balance = "consistent-hash".into(),
            "with what it goes by",
        ),
        (|s| s.services[0].traffic.prefer = "far".into(), "any or near"),
        (|s| s.services[0].traffic.panic = 2.0, "a share 0..1"),
        (|s| s.services[0].endpoints[0].wire_port = 0, "not a port"),
        (
            |s| {
                if let Some(hedge) = &mut s.services[0].traffic.hedge {
                    hedge.after_ms = 0;
                }
            },
            "is not more than 0 ms before a hedge",
        ),
        (
            |s| {
                if let Some(hedge) = &mut s.services[0].traffic.hedge {
                    hedge.attempts = 1;
                }
            },
            "is not at least 2 attempts",
        ),
        (
            |s| {
                if let Some(retries) = &mut s.services[0].traffic.retries {
                    retries.on.push("4xx".into());
                }
            },
            "is not reasons to try again (5xx, reset",
        ),
        (
            |s| {
                if let Some(rules) = &mut s.units[1].outbound {
                    rules[0].network = "198.18.0.0/15".into();
                }
            },
            "exactly one of service, host, network",
        ),
    ];
    for (change, expect) in cases {
        let mut snapshot = snapshot("h1");
        change(&mut snapshot);
        let error = Config::build(snapshot).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error:?} should say {expect:?}");
    }
}
