//! Policy turns against requests that are under way, and against what became a tunnel.

use tokio::time::{Instant, sleep};

use super::*;

const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
const UPGRADE: &str = "GET /a HTTP/1.1\r\nHost: nginx\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";

fn nobody(snapshot: &mut Snapshot) {
    snapshot.units[0].allow.clear();
}

/// /a is let in, and no path that has no one meaning.
fn paths_only(snapshot: &mut Snapshot) {
    snapshot.units[0].allow[0].paths = vec!["/a".into()];
}

fn by_other_line(snapshot: &mut Snapshot) {
    snapshot.units[0].allow[0].rule = "nginx.service.toml:99".into();
}

fn audit_nobody(snapshot: &mut Snapshot) {
    nobody(snapshot);
    snapshot.units[0].mode = "audit".into();
}

fn identity() -> inbound::Who {
    inbound::Who::Identity(ORDERS.into())
}

impl World {
    /// The refusal that the journal of this unit tells, and its count.
    async fn told(&self, unit: &str, verdict: &str, rule: &str) {
        let event = self.event_of_kind(unit, "denied").await;
        assert_eq!((event.verdict, &*event.rule), (verdict, rule));
        assert_eq!(self.stats().denied[rule], 1);
    }

    async fn event_of_kind(&self, unit: &str, kind: &str) -> Event {
        loop {
            let event = self.event_of(unit).await;
            if event.kind == kind {
                return event;
            }
        }
    }

    /// A unit of this host, or a caller from elsewhere.
    async fn by(&self, called_here: bool) -> Peer {
        let stream = if called_here {
            self.client().await
        } else {
            self.caller(identity()).await
        };
        Peer(stream, Vec::new())
    }

    /// A client and the application, after a first request.
    async fn acquainted(&self, called_here: bool) -> (Peer, Peer) {
        let (mut client, mut application) = self.asked(called_here).await;
        application.send(OK).await;
        client.until("ok").await;
        (client, application)
    }

    /// The same, while a response is under way.
    async fn streaming(&self, called_here: bool) -> (Peer, Peer) {
        let (mut client, mut application) = self.asked(called_here).await;
        application.send(STREAM).await;
        client.until("first\r\n").await;
        (client, application)
    }

    /// The same, before there is a response.
    async fn asked(&self, called_here: bool) -> (Peer, Peer) {
        let mut client = self.by(called_here).await;
        client.send(GET).await;
        let mut application = self.accept().await;
        application.head().await;
        (client, application)
    }
}

async fn upgrade(client: &mut Peer, application: &mut Peer) {
    client.send(UPGRADE).await;
    application.head().await;
    application.send(SWITCHED).await;
    client.head().await;
}

#[test]
fn what_is_in_force_holds_whatever_was_when_the_connection_came() {
    run(async {
        let world = World::new(|_| {}).await;
        let before = world.shared.config().expect("a config");
        world.put(nobody);
        let mut client = Peer(world.caller_by(before, identity()).await, Vec::new());
        client.send(GET).await;
        assert!(client.head().await.starts_with("HTTP/1.1 403 "));
    });
}

#[test]
fn a_unit_that_is_gone_lets_no_request_in_or_out() {
    run(async {
        for (called_here, unit) in [(false, "nginx.service"), (true, "orders.service")] {
            let world = World::new(|_| {}).await;
            let (mut client, _application) = world.acquainted(called_here).await;
            world.put(|snapshot| {
                snapshot
                    .services
                    .retain(|service| called_here && service.name == "nginx");
                snapshot.units.retain(|known| known.unit != unit);
            });
            for count in 1..=2 {
                client.send(GET).await;
                let answer = client.until("denied by policy\n").await;
                assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
                assert_eq!(world.stats().denied["builtin:unknown-unit"], count);
            }
            assert_eq!(world.event_of_kind(unit, "denied").await.rule, "builtin:unknown-unit");
        }
    });
}

#[test]
fn a_port_that_speaks_http_no_more_ends_the_connection_and_is_told() {
    run(async {
        for (called_here, unit) in [(false, "nginx.service"), (true, "orders.service")] {
            let world = World::new(|_| {}).await;
            let (mut client, _application) = world.acquainted(called_here).await;
            world.put(|snapshot| {
                snapshot
                    .services
                    .retain(|service| called_here && service.name == "nginx");
                for service in &mut snapshot.services {
                    service.ports[0].protocol = "tcp".into();
                }
                snapshot.units[0].ports[0].protocol = "tcp".into();
            });
            client.send(GET).await;
            client.rest().await.expect_err("reset");
            let told = world.event_of_kind(unit, "error").await.message;
            let port = world.snapshot.units[0].ports[0].port;
            let wanted = if called_here {
                "there is no more HTTP at 240.240.0.12:80".to_owned()
            } else {
                format!("port {port} speaks HTTP no more")
            };
            assert_eq!(told, wanted);
        }
    });
}

#[test]
fn without_a_response_it_is_answered_as_at_the_beginning() {
    run(async {
        for change in [nobody as fn(&mut Snapshot), |snapshot| drop(snapshot.units.remove(0))] {
            let world = World::new(|snapshot| snapshot.services.clear()).await;
            let (mut client, application) = world.asked(false).await;
            world.put(|snapshot| {
                snapshot.services.clear();
                change(snapshot);
            });
            assert!(client.head().await.starts_with("HTTP/1.1 403 "));
            application
                .rest()
                .await
                .expect_err("the application's connection is reset");
        }
    });
}

#[test]
fn a_response_under_way_is_broken_off_and_told() {
    run(async {
        let world = World::new(|_| {}).await;
        let (mut client, mut application) = world.streaming(false).await;
        world.put(by_other_line);
        application.send("4\r\nmore\r\n").await;
        client.until("more\r\n").await;
        world.put(nobody);
        client.rest().await.expect_err("not made to look whole");
        application.rest().await.expect_err("reset");
        world.told("nginx.service", "deny", "nginx.service.toml:no-allow").await;
    });
}

#[test]
fn audit_tells_once_and_enforcing_it_breaks_off() {
    run(async {
        let world = World::new(|_| {}).await;
        let (mut client, mut application) = world.streaming(false).await;
        world.put(audit_nobody);
        world
            .told("nginx.service", "audit-deny", "nginx.service.toml:no-allow")
            .await;
        world.put(|snapshot| {
            audit_nobody(snapshot);
            snapshot.units[1].access_log = "none".into(); // another config, the same verdict
        });
        application.send("4\r\nmore\r\n").await;
        client.until("more\r\n").await;
        world.put(nobody);
        client.rest().await.expect_err("broken off");
        let event = world.event_of("nginx.service").await;
        assert_eq!((event.kind, event.verdict), ("denied", "deny"), "audit was told once");
    });
}

#[test]
fn on_one_host_each_side_tells_its_own() {
    run(async {
        let no_outbound = |snapshot: &mut Snapshot| snapshot.units[1].outbound = Some(Vec::new());
        let (nginx, orders) = ("nginx.service", "orders.service");
        for (change, unit, rule, other) in [
            (
                nobody as fn(&mut Snapshot),
                nginx,
                "nginx.service.toml:no-allow",
                orders,
            ),
            (no_outbound, orders, "orders.service.toml:no-outbound", nginx),
        ] {
            let world = World::new(|_| {}).await;
            let (client, application) = world.streaming(true).await;
            world.put(change);
            client.rest().await.expect_err("broken off");
            application.rest().await.expect_err("reset");
            world.told(unit, "deny", rule).await;
            let event = world.event_of(other).await;
            assert_eq!(
                (event.kind, event.status, &*event.message),
                ("error", 200, "refused by the other side's policy")
            );
        }
    });
}

#[test]
fn a_tunnel_is_judged_by_the_request_that_opened_it() {
    run(async {
        let paths =
            |path: &'static str| move |snapshot: &mut Snapshot| snapshot.units[0].allow[0].paths = vec![path.into()];
        let world = World::new(paths("/a")).await;
        for called_here in [false, true] {
            world.put(paths("/a"));
            let mut client = world.by(called_here).await;
            client.send(UPGRADE).await;
            let mut application = world.accept().await;
            application.head().await;
            application.send(SWITCHED).await;
            client.head().await;
            world.put(by_other_line);
            client.send("hello").await;
            application.until("hello").await;
            world.put(paths("/b"));
            client.rest().await.expect_err("reset");
            application.rest().await.expect_err("reset");
        }
        assert_eq!(world.stats().denied["nginx.service.toml:no-allow"], 2);
    });
}

#[test]
fn a_caller_of_this_host_reads_what_it_was_answered() {
    run(async {
        let cases = [
            (nobody as fn(&mut Snapshot), "/a", 403, "denied"),
            (paths_only, "/b/../a", 400, "bad-path"),
        ];
        for (change, path, status, word) in cases {
            for has_begun in [false, true] {
                let world = World::new(|_| {}).await;
                let mut client = Peer(world.client().await, Vec::new());
                client
                    .send(&format!("GET {path} HTTP/1.1\r\nHost: nginx\r\n\r\n"))
                    .await;
                let mut application = world.accept().await;
                application.head().await;
                if has_begun {
                    application.send(STREAM).await;
                    client.until("first\r\n").await;
                }
                world.put(change);
                let (wanted, class) = if has_begun {
                    client.rest().await.expect_err("broken off");
                    ((200, "error", "refused by the other side's policy"), "2xx")
                } else {
                    let head = client.head().await;
                    assert_eq!(field(&head, "x-hostmesh-error"), Some(word), "{head}");
                    ((status, "request", ""), "4xx")
                };
                let told = world.event_of("orders.service").await;
                assert_eq!((told.status, told.kind, &*told.message), wanted, "{path}");
                let traffic = world.stats().traffic;
                let row = traffic.iter().find(|row| &*row.unit == "orders.service");
                assert_eq!(row.expect("a row").code_class, class, "{path}");
            }
        }
    });
}

#[test]
fn a_tunnel_that_audit_would_end_is_told() {
    run(async {
        for called_here in [false, true] {
            let world = World::new(|_| {}).await;
            let (mut client, mut application) = world.acquainted(called_here).await;
            upgrade(&mut client, &mut application).await;
            world.put(audit_nobody);
            let rule = "nginx.service.toml:no-allow";
            world.told("nginx.service", "audit-deny", rule).await;
            client.send("hello").await;
            application.until("hello").await;
        }
    });
}

#[test]
fn a_tunnel_lasts_since_its_own_request() {
    run(async {
        for (called_here, unit) in [(false, "nginx.service"), (true, "orders.service")] {
            let world = World::new(|_| {}).await;
            let (mut client, mut application) = world.acquainted(called_here).await;
            sleep(Duration::from_millis(300)).await; // is none of the tunnel's time
            let begun = Instant::now();
            upgrade(&mut client, &mut application).await;
            drop(client);
            application.rest().await.expect("an orderly end");
            let lasted = loop {
                let event = world.event_of(unit).await;
                if event.kind == "connection" {
                    break Duration::from_micros(event.duration_us);
                }
            };
            assert!(lasted <= begun.elapsed(), "{lasted:?} of {:?}", begun.elapsed());
        }
    });
}
