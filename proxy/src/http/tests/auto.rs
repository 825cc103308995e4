//! Ports that are `auto`: what audit tells and limits count once a connection has told what it speaks, wherever it comes in.

use hostmesh_proxy_core::snapshot::Limit;

use super::*;
use crate::arriving::Arriving;
use crate::connect::Connector;
use crate::http::conn::Conn;
use crate::rejudge::Opened;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 240, 0, 12));
const TOO_MANY: &str = "HTTP/1.1 429 ";

/// How a connection of orders.service comes to nginx.service.
#[derive(Clone, Copy, Debug)]
enum Way {
    FromElsewhere,
    ByService,
    ByAddress,
}

const WAYS: [Way; 3] = [Way::FromElsewhere, Way::ByService, Way::ByAddress];

impl World {
    async fn auto(change: impl FnOnce(&mut Snapshot)) -> Self {
        let auto = "auto".to_owned();
        Self::new(|snapshot| {
            snapshot.units[0].ports[0].protocol.clone_from(&auto);
            let services = snapshot.services.iter_mut();
            let nginx = services.filter(|service| service.name == "nginx");
            nginx.for_each(|service| service.ports[0].protocol.clone_from(&auto));
            change(snapshot);
        })
        .await
    }

    async fn coming(&self, way: Way) -> Peer {
        let (client, server) = pair().await;
        let (worker, config) = (self.worker.clone(), self.shared.config().expect("a config"));
        let port = config.unit_by_number(1).expect("nginx").ports[0];
        let called = match way {
            Way::FromElsewhere => {
                spawn_local(Self::arrives(worker, config, server));
                return Peer(client, Vec::new());
            }
            Way::ByService => SocketAddr::new(VIP, 80),
            Way::ByAddress => SocketAddr::new(LOCALHOST, port.port),
        };
        let connector = Connector {
            unit: config.unit_by_number(2).expect("orders").clone(),
            worker,
            config,
            client: LOCALHOST,
        };
        spawn_local(async move {
            let config = connector.config.clone();
            let destination = config.destination(called.ip(), called.port());
            crate::outbound::carry(connector, called, destination, server).await;
        });
        Peer(client, Vec::new())
    }

    async fn arrives(worker: Rc<Worker>, config: Arc<Config>, tcp: TcpStream) {
        let unit = config.unit_by_number(1).expect("nginx").clone();
        let port = unit.ports[0];
        let mut opened = Opened::new(&worker, &config, tokio::time::Instant::now());
        let arriving = Arriving {
            about: About {
                direction: "inbound",
                peer: ORDERS.into(),
                service: unit.service.clone(),
                port: port.port,
                protocol: port.protocol.as_str(),
                client: LOCALHOST,
                sni: None,
                route: None,
                unit,
            },
            who: inbound::Who::Identity(ORDERS.into()),
            port,
            config,
        };
        match arriving.meet(&mut opened).await {
            Ok(met) => arriving.carry(&worker, opened, met, Conn::new(Stream::Tcp(tcp))).await,
            Err(_) => crate::sockopt::abort(tcp),
        }
    }

    /// Answers requests, and the first line of what is none, for ever; however many connections there are.
    async fn answers(&self) {
        loop {
            let mut peer = self.accept().await;
            spawn_local(async move {
                while peer.0.read_buf(&mut peer.1).await.is_ok_and(|count| count > 0) {
                    if peer.1.ends_with(b"\r\n\r\n") {
                        peer.1.clear();
                        peer.send(OK).await;
                    } else if peer.1.ends_with(b"\n") {
                        peer.1.clear();
                        peer.send("hello\n").await;
                    }
                }
            });
        }
    }
}

fn once(snapshot: &mut Snapshot) {
    let nginx = &mut snapshot.units[0];
    nginx.limits = vec![Limit {
        of: nginx.allow[0].clone(),
        requests: 1,
        window_ms: 3_600_000,
        burst: 1,
        concurrent: 1,
        per: "caller".into(),
    }];
}

#[test]
fn what_went_on_before_it_was_a_request_goes_again_as_a_whole() {
    for way in WAYS {
        run(async move {
            let world = World::auto(|_| {}).await;
            let mut client = world.coming(way).await;
            client.send("GE").await;
            let mut bytes = world.accept().await;
            bytes.until("GE").await;
            client.send(&GET[2..]).await;
            let mut application = world.accept().await;
            assert!(application.head().await.starts_with("GET /a HTTP/1.1\r\n"), "{way:?}");
            application.send(OK).await;
            assert!(client.until("ok").await.starts_with("HTTP/1.1 200 OK"));
        });
    }
}

#[test]
fn what_went_on_before_it_was_known_to_be_none_goes_once() {
    for way in WAYS {
        run(async move {
            let world = World::auto(|_| {}).await;
            let mut client = world.coming(way).await;
            client.send("GE").await;
            let mut application = world.accept().await;
            application.until("GE").await;
            client.send("ORGE\n").await;
            assert_eq!(application.until("\n").await, "ORGE\n", "{way:?}");
        });
    }
}

fn audited(snapshot: &mut Snapshot) {
    snapshot.units[0].mode = "audit".into();
    snapshot.units[0].allow.clear();
}

/// The test, while the application answers.
async fn during(change: impl FnOnce(&mut Snapshot), test: impl AsyncFnOnce(&World)) {
    let world = World::auto(change).await;
    tokio::select! {
        biased;
        () = test(&world) => {}
        () = world.answers() => {}
    }
}

#[test]
fn what_becomes_http_is_counted_by_its_requests_alone() {
    for way in WAYS {
        run(during(once, async move |world| {
            let (mut silent, mut client) = (world.coming(way).await, world.coming(way).await);
            client.send(GET).await;
            assert!(client.until("ok").await.starts_with("HTTP/1.1 200 OK"), "{way:?}");
            for client in [&mut client, &mut silent] {
                client.send(GET).await;
                let reply = client.head().await;
                assert!(reply.starts_with(TOO_MANY), "{way:?}: {reply}");
            }
        }));
    }
}

#[test]
fn what_is_no_http_is_counted_once_it_has_told() {
    for way in WAYS {
        run(during(once, async move |world| {
            let (mut late, mut client) = (world.coming(way).await, world.coming(way).await);
            client.send("HELO\n").await;
            assert_eq!(client.until("\n").await, "hello\n", "{way:?}");
            late.send("HELO\n").await;
            assert!(late.rest().await.is_err(), "{way:?}: it was reset");
            let denied = world.event_of("nginx.service").await;
            assert_eq!(
                (denied.kind, denied.flag, denied.protocol),
                ("denied", "limited", "tcp")
            );
        }));
    }
}

#[test]
fn audit_tells_of_what_a_connection_has_turned_out_to_be() {
    for way in WAYS {
        run(during(audited, async move |world| {
            let mut client = world.coming(way).await;
            client.send(GET).await;
            client.until("ok").await;
            let told = world.event_of("nginx.service").await;
            assert_eq!(
                (told.kind, told.verdict, &*told.method, told.protocol),
                ("denied", "audit-deny", "GET", "http"),
                "{way:?}: the request, and not its connection"
            );
            let mut client = world.coming(way).await;
            client.send("HELO\n").await;
            client.until("\n").await;
            drop(client);
            loop {
                let told = world.event_of("nginx.service").await;
                if told.verdict == "audit-deny" {
                    assert_eq!((told.kind, told.protocol), ("denied", "tcp"), "{way:?}");
                    break;
                }
            }
        }));
    }
}
