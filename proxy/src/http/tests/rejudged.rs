//! Policy turns against requests that are under way, and against what became a tunnel.

use super::*;

const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
const UPGRADE: &str = "GET /a HTTP/1.1\r\nHost: nginx\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";

fn nobody(snapshot: &mut Snapshot) {
    snapshot.units[0].allow.clear();
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
        loop {
            let event = self.event_of(unit).await;
            if event.kind == "denied" {
                assert_eq!((event.verdict, &*event.rule), (verdict, rule));
                break;
            }
        }
        assert_eq!(self.stats().denied[rule], 1);
    }
}

#[test]
fn without_a_response_it_is_answered_as_at_the_beginning() {
    run(async {
        for change in [nobody as fn(&mut Snapshot), |snapshot| drop(snapshot.units.remove(0))] {
            let world = World::new(|snapshot| snapshot.services.clear()).await;
            let mut client = Peer(world.caller(identity()).await, Vec::new());
            client.send(GET).await;
            let mut application = world.accept().await;
            application.head().await;
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
        let mut client = Peer(world.caller(identity()).await, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        application.send(STREAM).await;
        client.until("first\r\n").await;
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
        let mut client = Peer(world.caller(identity()).await, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        application.send(STREAM).await;
        client.until("first\r\n").await;
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
        for (change, unit, rule) in [
            (
                nobody as fn(&mut Snapshot),
                "nginx.service",
                "nginx.service.toml:no-allow",
            ),
            (no_outbound, "orders.service", "orders.service.toml:no-outbound"),
        ] {
            let world = World::new(|_| {}).await;
            let mut client = Peer(world.client().await, Vec::new());
            client.send(GET).await;
            let mut application = world.accept().await;
            application.head().await;
            application.send(STREAM).await;
            client.until("first\r\n").await;
            world.put(change);
            client.rest().await.expect_err("broken off");
            application.rest().await.expect_err("reset");
            world.told(unit, "deny", rule).await;
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
            let stream = if called_here {
                world.client().await
            } else {
                world.caller(identity()).await
            };
            let mut client = Peer(stream, Vec::new());
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
