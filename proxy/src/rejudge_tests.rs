//! The questions of a connection that is being opened: denied meanwhile, or withdrawn with the endpoint that they were about.

use std::future::{pending, ready};
use std::net::Ipv4Addr;

use hostmesh_proxy_core::snapshot::Snapshot;

use super::*;
use crate::events::EventSource;
use crate::fixture;

const ORDERS: &str = "spiffe://mesh.local/unit/orders";
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

/// A worker of the host on which nginx.service lets orders.service in, which may call everybody.
struct World {
    worker: Rc<Worker>,
    events: EventSource,
    snapshot: Snapshot,
}

impl World {
    fn new() -> Self {
        let (shared, events) = fixture::shared();
        let world = Self {
            worker: Worker::new(shared, 1),
            events,
            snapshot: fixture::snapshot(&fixture::Authority::new()),
        };
        world.put(|_| {});
        world
    }

    fn put(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.clone();
        snapshot.units[1].outbound = None;
        change(&mut snapshot);
        let config = Config::build(snapshot).expect("a config");
        self.worker.shared.set_config(config).expect("in force");
    }

    fn config(&self) -> Arc<Config> {
        self.worker.shared.config().expect("a config")
    }

    fn about(&self, number: u32, direction: &'static str, service: &str, port: u16) -> About {
        About {
            unit: self.config().unit_by_number(number).expect("a unit").clone(),
            direction,
            peer: ORDERS.into(),
            service: service.into(),
            port,
            protocol: "tcp",
            client: ADDRESS,
            sni: None,
            route: None,
        }
    }

    /// A connection of orders.service to this service, or to the address.
    fn called(&self, service: &str, port: u16) -> Opened {
        let config = self.config();
        let mut opened = Opened::new(&self.worker, &config, Instant::now());
        let (address, hosts) = (ADDRESS, Vec::new());
        let about = self.about(2, "outbound", service, port);
        opened
            .ask(&config, about, Asked::Call { address, hosts })
            .expect("it may call");
        opened
    }
}

fn may_call_nobody(snapshot: &mut Snapshot) {
    snapshot.units[1].outbound = Some(Vec::new());
}

async fn is_denied(opened: &Opened) -> bool {
    tokio::select! {
        biased;
        _ = opened.denied() => true,
        () = ready(()) => false,
    }
}

#[tokio::test]
async fn what_is_denied_while_it_is_opened_is_told_as_refused() {
    let mut world = World::new();
    let opened = world.called("", 9000);
    assert_eq!(opened.unless_denied(ready("done")).await, Some("done"));
    world.put(may_call_nobody);
    assert!(opened.unless_denied(pending::<()>()).await.is_none());
    let told = world.events.journal.batch(9).await;
    let [told] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        (told.kind, &*told.rule, &*told.message, told.duration_us),
        (
            "denied",
            "orders.service.toml:no-outbound",
            "orders.service may not call 192.0.2.9 on port 9000",
            0
        ),
        "it was never open"
    );
    let counted = world.worker.shared.stats.collect();
    assert_eq!(counted.denied["orders.service.toml:no-outbound"], 1);
}

#[tokio::test]
async fn what_was_withdrawn_is_not_asked_again() {
    let world = World::new();
    let (mut kept, mut left) = (world.called("nginx", 80), world.called("nginx", 80));
    for opened in [&mut kept, &mut left] {
        let about = world.about(1, "local", "nginx", 80);
        let who = Who::Identity(ORDERS.into());
        opened
            .ask(&world.config(), about, Asked::ComeIn(who))
            .expect("it is let in");
    }
    left.withdraw();
    world.put(|snapshot| snapshot.units[0].allow.clear());
    assert!(is_denied(&kept).await);
    assert!(!is_denied(&left).await, "by a unit that it does not call any more");
    world.put(may_call_nobody);
    assert_eq!(left.denied().await.about.direction, "outbound");
}

#[tokio::test]
async fn what_has_told_nothing_may_wait_as_long_as_a_request_may_come() {
    let world = World::new();
    let mut opened = world.called("nginx", 80);
    opened.wait_until_told();
    let (about, who) = (world.about(1, "local", "nginx", 80), Who::Identity(ORDERS.into()));
    opened
        .ask(&world.config(), about, Asked::ComeIn(who))
        .expect("it is let in so far");
    world.put(|snapshot| snapshot.units[0].allow[0].methods = vec!["GET".into()]);
    assert!(!is_denied(&opened).await, "bytes may not come in, and a request may");
    world.put(|snapshot| snapshot.units[0].allow.clear());
    assert!(is_denied(&opened).await, "nothing may");
}
