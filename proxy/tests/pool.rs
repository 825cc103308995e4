//! The pool of wire connections when things go wrong: a peer that cannot be reached, a certificate that is over.

#[allow(dead_code)] // each test file uses a part
mod ends;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ends::{End, Mesh, config, run, soon, until};
use hostmesh_proxy::connect::Connector;
use hostmesh_proxy::shared::Svids;
use hostmesh_proxy::traces::connection::Opening;
use hostmesh_proxy::wire::client::OpenError;
use hostmesh_proxy_core::balance::Ask;
use hostmesh_proxy_core::config::{Endpoint, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

const ROUND_TRIP: Duration = Duration::from_millis(200);

#[test]
fn those_who_wait_for_a_peer_learn_together_that_it_is_not_there() {
    run(async {
        let mesh = Mesh::new().await;
        let dead = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wire = dead.local_addr().expect("an address").port();
        let h1 = End::new(config("h1", &[&mesh.ca], wire, mesh.ports), [mesh.ca.orders()]);
        let dialed = Rc::new(Cell::new(0));
        let count = dialed.clone();
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = dead.accept().await {
                count.set(count.get() + 1);
                drop(tcp);
            }
        });
        let endpoint = h1.shared().config().expect("a config").services[0].endpoints[0].clone();
        let unit = "orders.service".into();
        let open = || {
            soon(async {
                h1.worker
                    .pool
                    .open(&unit, &endpoint, mesh.ports[0], &Opening::default())
                    .await
            })
        };
        let (one, two, three) = tokio::join!(open(), open(), open());
        for opened in [one, two, three] {
            assert!(matches!(opened, Err(OpenError::Unreachable(_))));
        }
        assert_eq!(dialed.get(), 1, "each found out for itself");
        assert!(open().await.is_err());
        assert_eq!(dialed.get(), 2, "who asks later is not told old news");
    });
}

#[test]
fn a_client_whose_certificate_is_over_opens_nothing_more_on_its_connection() {
    run(async {
        let mesh = Mesh::new().await;
        let unit = "orders.service".into();
        let endpoint = mesh.endpoint();
        let open = || {
            soon(async {
                mesh.h1
                    .worker
                    .pool
                    .open(&unit, &endpoint, mesh.ports[0], &Opening::default())
                    .await
            })
        };
        let (first, mut application) = tokio::join!(open(), mesh.arrives());
        let mut first = first.expect("a stream");
        let link = mesh.h2.worker.links.borrow()[0].upgrade().expect("a connection");
        link.sweep(0);
        let (second, _other) = tokio::join!(open(), mesh.arrives());
        second.expect("a stream");
        assert_eq!(mesh.accepted.get(), 1, "it is not over yet");
        link.sweep(u64::MAX);
        let third = async {
            loop {
                let (opened, _application) = tokio::join!(open(), mesh.arrives());
                opened.expect("a stream");
                if mesh.accepted.get() == 2 {
                    break;
                }
            }
        };
        soon(third).await;
        first
            .split()
            .0
            .write(bytes::Bytes::from_static(b"still"))
            .await
            .expect("open");
        let mut still = [0; 5];
        soon(application.read_exact(&mut still)).await.expect("bytes");
        application.write_all(b"here").await.expect("open");
        assert_eq!(&still, b"still");
        assert_eq!(
            soon(first.split().1.read()).await.expect("bytes").as_deref(),
            Some(&b"here"[..])
        );
    });
}

#[test]
fn a_dial_goes_on_when_nobody_waits_and_serves_the_next_try() {
    run(async {
        let mesh = Mesh::new().await;
        let far = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wire = far.local_addr().expect("an address").port();
        let near = mesh.wire;
        let dialed = Rc::new(Cell::new(0));
        let count = dialed.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut tcp, _)) = far.accept().await {
                count.set(count.get() + 1);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(ROUND_TRIP).await;
                    let mut on = TcpStream::connect(near).await.expect("connected");
                    // Ends when either side does.
                    let _ended = tokio::io::copy_bidirectional(&mut tcp, &mut on).await;
                });
            }
        });
        let h1 = End::new(config("h1", &[&mesh.ca], wire, mesh.ports), [mesh.ca.orders()]);
        let endpoint = h1.shared().config().expect("a config").services[0].endpoints[0].clone();
        let unit = "orders.service".into();
        let tries = async {
            loop {
                let opening = Opening::default();
                let open = h1.worker.pool.open(&unit, &endpoint, mesh.ports[0], &opening);
                if let Ok(opened) = timeout(ROUND_TRIP / 4, open).await {
                    break opened;
                }
            }
        };
        let (opened, _application) = soon(async { tokio::join!(tries, mesh.arrives()) }).await;
        opened.expect("a stream");
        assert_eq!(dialed.get(), 1, "each try dialed for itself");
    });
}

#[test]
fn an_endpoint_that_is_called_by_an_address_is_dialed_there_only() {
    run(async {
        let mesh = Mesh::new().await;
        let unit = "orders.service".into();
        let endpoint = mesh.endpoint();
        let open = |endpoint| {
            let (pool, unit) = (mesh.h1.worker.pool.clone(), &unit);
            soon(async move { pool.open(unit, endpoint, mesh.ports[0], &Opening::default()).await })
        };
        let (by_name, _application) = tokio::join!(open(&endpoint), mesh.arrives());
        by_name.expect("a stream");
        let claimed = endpoint.at("127.0.0.2".parse().expect("an address"));
        let wire = std::net::TcpListener::bind(("127.0.0.2", mesh.wire.port())).expect("a port");
        drop(wire);
        let refused = open(&claimed).await;
        assert!(
            matches!(refused, Err(OpenError::Unreachable(_))),
            "it went where it was not called"
        );
        let its_own = endpoint.at("127.0.0.1".parse().expect("an address"));
        let (called, _application) = tokio::join!(open(&its_own), mesh.arrives());
        called.expect("a stream");
        assert_eq!(mesh.accepted.get(), 2, "a connection of its own");
    });
}

#[test]
fn a_connection_that_is_made_while_the_certificate_is_replaced_opens_nothing_more() {
    run(async {
        let mesh = Mesh::new().await;
        let far = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (wire, near) = (far.local_addr().expect("an address").port(), mesh.wire);
        let (dialed, passes) = (Rc::new(Cell::new(0)), Rc::new(Semaphore::new(1)));
        let (count, pass) = (dialed.clone(), passes.clone());
        tokio::task::spawn_local(async move {
            while let Ok((mut tcp, _)) = far.accept().await {
                count.set(count.get() + 1);
                pass.acquire().await.expect("open").forget();
                let mut on = TcpStream::connect(near).await.expect("connected");
                // Ends when either side does.
                tokio::task::spawn_local(async move { tokio::io::copy_bidirectional(&mut tcp, &mut on).await });
            }
        });
        let h1 = End::new(config("h1", &[&mesh.ca], wire, mesh.ports), [mesh.ca.orders()]);
        let endpoint = h1.shared().config().expect("a config").services[0].endpoints[0].clone();
        let unit = "orders.service".into();
        let open = async |endpoint: &Endpoint| {
            let (opened, _application) = tokio::join!(
                soon(async {
                    h1.worker
                        .pool
                        .open(&unit, endpoint, mesh.ports[0], &Opening::default())
                        .await
                }),
                mesh.arrives()
            );
            opened.expect("a stream");
        };
        open(&endpoint).await;
        assert_eq!(h1.gauge("pooled"), 1);
        let other = endpoint.at("127.0.0.1".parse().expect("an address"));
        let replaced = async {
            until(|| dialed.get() == 2).await;
            h1.shared().set_svids(Svids::new([mesh.ca.orders()]));
            until(|| h1.gauge("pooled") == 0).await; // those that were there are seen to
            passes.add_permits(2);
        };
        tokio::join!(open(&other), replaced);
        open(&other).await;
        assert_eq!(dialed.get(), 3, "with the old certificate");
    });
}

/// Calls the service that h1 knows, beside whose endpoint there is another that may be taken.
struct Caller {
    connector: Connector,
    service: Service,
}

impl Caller {
    fn new(mesh: &Mesh) -> Self {
        let config = mesh.h1.shared().config().expect("a config");
        let (known, endpoint) = (&config.services[0], mesh.endpoint());
        let other = Endpoint {
            id: endpoint.id + 1,
            ..(*endpoint).clone()
        };
        let service = Service {
            name: known.name.clone(),
            vips: known.vips.clone(),
            ports: known.ports.clone(),
            traffic: known.traffic.clone(),
            endpoints: vec![endpoint, Arc::new(other)],
            circuit: OnceLock::new(),
        };
        let connector = Connector {
            worker: mesh.h1.worker.clone(),
            unit: config.unit_by_name("orders.service").expect("the unit").clone(),
            config,
            client: "127.0.0.1".parse().expect("an address"),
        };
        Self { connector, service }
    }

    /// The endpoint could not be reached, so long ago that it is to be tried again.
    fn missed(&self) {
        let before = Instant::now().checked_sub(Duration::from_secs(2)).expect("a time");
        let mut loads = self.connector.worker.loads.borrow_mut();
        loads.unreachable(self.service.endpoints[0].id, before);
    }

    /// Is it among those that a request takes?
    fn takes_it(&self) -> bool {
        let ask = |random| Ask {
            tried: &[],
            random,
            now: Instant::now(),
            key: None,
        };
        let mut loads = self.connector.worker.loads.borrow_mut();
        (0..64).any(|turn| {
            let picked = loads.pick(&self.service, ask(turn << 32));
            picked.expect("an endpoint").id == self.service.endpoints[0].id
        })
    }
}

#[test]
fn an_endpoint_to_which_a_connection_is_open_is_found_again_though_nobody_dials() {
    run(async {
        let mesh = Mesh::new().await;
        let caller = Caller::new(&mesh);
        let pool = &mesh.h1.worker.pool;
        soon(pool.reach(&"orders.service".into(), &mesh.endpoint()))
            .await
            .expect("a connection");
        caller.missed();
        assert!(!caller.takes_it(), "it is away");
        caller.connector.pick(&caller.service, &[], None).expect("an endpoint");
        until(|| caller.takes_it()).await;
        assert_eq!(mesh.accepted.get(), 1, "nothing was dialed");
    });
}

#[test]
fn a_caller_without_a_certificate_says_nothing_of_an_endpoint() {
    run(async {
        let mesh = Mesh::new().await;
        let caller = Caller::new(&mesh);
        mesh.h1.shared().set_svids(Svids::default());
        caller.missed();
        let begun = Instant::now();
        caller.connector.pick(&caller.service, &[], None).expect("an endpoint");
        let due = || mesh.h1.worker.loads.borrow_mut().due(&caller.service, begun).is_some();
        assert!(!due(), "somebody tries");
        until(due).await;
        assert_eq!(mesh.accepted.get(), 0);
    });
}
