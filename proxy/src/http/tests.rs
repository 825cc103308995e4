//! The relay with real sockets: a client, the relay, and an application whose every byte the test says.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::{InboundRule, Retries, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::{inbound, outbound};
use crate::events::{Event, EventSource};
use crate::fixture;
use crate::shared::Shared;
use crate::stats::Collected;
use crate::stream::Stream;
use crate::worker::{About, Worker};

const LIMIT: Duration = Duration::from_secs(10);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ORDERS: &str = "spiffe://mesh.local/unit/orders";

/// A worker, and the application of nginx.service on this host, which orders.service may call by a VIP.
struct World {
    worker: Rc<Worker>,
    shared: Arc<Shared>,
    events: Mutex<EventSource>,
    application: TcpListener,
    snapshot: Snapshot,
}

impl World {
    async fn new(change: impl FnOnce(&mut Snapshot)) -> Self {
        let application = TcpListener::bind((LOCALHOST, 0)).await.expect("a port");
        let port = application.local_addr().expect("its address").port();
        let mut snapshot = fixture::snapshot(&fixture::Authority::new());
        let [nginx, orders] = &mut snapshot.units[..] else {
            panic!("the vector has two units")
        };
        nginx.deliver = vec!["127.0.0.1".into()];
        nginx.ports[0].port = port;
        nginx.ports[0].client_address = "local".into();
        nginx.access_log = "all".into();
        orders.outbound = None;
        let service = snapshot
            .services
            .iter_mut()
            .find(|service| service.name == "nginx")
            .expect("nginx");
        service.ports[0].target = port;
        service.endpoints.retain(|endpoint| endpoint.host == "h1");
        change(&mut snapshot);
        let (shared, events) = fixture::shared();
        shared
            .set_config(Config::build(snapshot.clone()).expect("a config"))
            .expect("in force");
        let worker = Worker::new(shared.clone(), 1).expect("a worker");
        Self {
            worker,
            shared,
            events: events.into(),
            application,
            snapshot,
        }
    }

    fn put(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.clone();
        change(&mut snapshot);
        self.shared
            .set_config(Config::build(snapshot).expect("a config"))
            .expect("in force");
    }

    /// A connection of orders.service to the VIP of nginx.
    async fn client(&self) -> TcpStream {
        let (client, server) = pair().await;
        let unit = self
            .shared
            .config()
            .expect("a config")
            .unit_by_number(2)
            .expect("orders")
            .clone();
        let called = SocketAddr::new([240, 240, 0, 12].into(), 80);
        spawn_local(outbound::serve(
            self.worker.clone(),
            unit,
            called,
            LOCALHOST,
            Stream::Tcp(server),
        ));
        client
    }

    /// A connection from elsewhere to nginx.service.
    async fn caller(&self, who: inbound::Who) -> TcpStream {
        let (client, server) = pair().await;
        let unit = self
            .shared
            .config()
            .expect("a config")
            .unit_by_number(1)
            .expect("nginx")
            .clone();
        let peer = match &who {
            inbound::Who::Identity(id) => id.clone(),
            inbound::Who::Plaintext { .. } => "plaintext".into(),
        };
        let (service, port) = (unit.service.clone(), unit.ports[0].port);
        let about = About {
            unit,
            direction: "inbound",
            peer,
            service,
            port,
            protocol: "http",
            client: LOCALHOST,
        };
        spawn_local(inbound::serve(self.worker.clone(), about, who, Stream::Tcp(server)));
        client
    }

    /// The application's next connection.
    async fn accept(&self) -> Peer {
        Peer(
            timeout(LIMIT, self.application.accept())
                .await
                .expect("in time")
                .expect("a connection")
                .0,
            Vec::new(),
        )
    }

    async fn event(&self) -> Event {
        let mut events = self.events.lock().await;
        timeout(LIMIT, events.batch(1)).await.expect("an event").remove(0)
    }

    /// The next event in the journal of this unit.
    async fn event_of(&self, unit: &str) -> Event {
        loop {
            let event = self.event().await;
            if event.unit == unit {
                return event;
            }
        }
    }

    fn stats(&self) -> Collected {
        self.shared.stats.collect()
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.expect("a client"), accepted.expect("a server").0)
}

/// One side of a conversation.
struct Peer(TcpStream, Vec<u8>);

impl Peer {
    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("sent");
    }

    /// Reads until the bytes end with this.
    async fn until(&mut self, end: &str) -> String {
        let find = |bytes: &[u8]| bytes.windows(end.len()).position(|window| window == end.as_bytes());
        loop {
            if let Some(at) = find(&self.1) {
                let rest = self.1.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.1, rest)).expect("text");
            }
            let count = timeout(LIMIT, self.0.read_buf(&mut self.1))
                .await
                .expect("in time")
                .expect("bytes");
            assert!(count > 0, "ended after {:?}", String::from_utf8_lossy(&self.1));
        }
    }

    async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Everything to the end of the stream; an error where it was broken off.
    async fn rest(mut self) -> std::io::Result<String> {
        timeout(LIMIT, self.0.read_to_end(&mut self.1))
            .await
            .expect("in time")?;
        Ok(String::from_utf8(self.1).expect("text"))
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(LIMIT * 3, test).await.expect("the test ends")
    });
}

fn retries(on: &[&str], non_idempotent: bool, per_try_timeout_ms: u64) -> impl FnOnce(&mut Snapshot) {
    let on = on.iter().map(|word| (*word).to_owned()).collect();
    move |snapshot| {
        let service = snapshot
            .services
            .iter_mut()
            .find(|service| service.name == "nginx")
            .expect("nginx");
        service.traffic.retries = Some(Retries {
            attempts: 3,
            per_try_timeout_ms,
            on,
            budget: 0.2,
            non_idempotent,
        });
        service.traffic.timeout_ms = 5_000;
    }
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: nginx\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn requests_follow_each_other_on_one_connection() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client
            .send(&format!(
                "{GET}GET /b HTTP/1.1\r\nHost: nginx\r\nx-hostmesh-peer: forged\r\n\r\n"
            ))
            .await;
        let mut application = world.accept().await;
        let first = application.head().await;
        assert!(first.starts_with("GET /a HTTP/1.1\r\nHost: nginx\r\n"), "{first}");
        assert_eq!(field(&first, "x-hostmesh-peer"), Some(ORDERS));
        assert!(field(&first, "traceparent").is_some_and(|value| value.len() == 55));
        application
            .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n")
            .await;
        let second = application.head().await;
        assert!(second.starts_with("GET /b"), "{second}");
        assert_eq!(
            field(&second, "x-hostmesh-peer"),
            Some(ORDERS),
            "what the caller claims is dropped"
        );
        application.send(OK).await;
        assert!(
            client
                .until("0\r\n\r\n")
                .await
                .ends_with("\r\n\r\n5\r\nfirst\r\n0\r\n\r\n")
        );
        assert!(client.until("\r\n\r\nok").await.starts_with("HTTP/1.1 200 OK\r\n"));
        let traffic = world.stats().traffic;
        let rows: Vec<_> = traffic
            .iter()
            .map(|row| (&*row.unit, row.direction, &*row.peer, row.code_class, row.count))
            .collect();
        let nginx = "spiffe://mesh.local/unit/nginx";
        assert_eq!(
            rows,
            [
                ("nginx.service", "local", ORDERS, "2xx", 2),
                ("orders.service", "outbound", nginx, "2xx", 2)
            ],
            "one pass, both sides' counters"
        );
    });
}

#[test]
fn a_request_in_single_bytes_and_a_body_both_ways() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        let request = "POST /a HTTP/1.1\r\nHost: nginx\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        client.0.set_nodelay(true).expect("an option");
        for byte in request.chars() {
            client.send(&byte.to_string()).await;
            tokio::task::yield_now().await;
        }
        let mut application = world.accept().await;
        assert!(
            application
                .until("3\r\nabc\r\n0\r\n\r\n")
                .await
                .contains("Transfer-Encoding: chunked")
        );
        application.send(OK).await;
        client.until("ok").await;
    });
}

#[test]
fn a_large_body_passes_whole_in_both_directions() {
    run(async {
        let world = World::new(|_| ()).await;
        let client = world.client().await;
        let (mut reader, mut writer) = client.into_split();
        let body: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let sent = body.clone();
        spawn_local(async move {
            let head = format!(
                "PUT /a HTTP/1.1\r\nHost: nginx\r\nContent-Length: {}\r\n\r\n",
                sent.len()
            );
            writer.write_all(head.as_bytes()).await.expect("sent");
            writer.write_all(&sent).await.expect("sent");
            writer
        });
        let mut application = world.accept().await;
        application.head().await;
        application
            .send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()))
            .await;
        let Peer(application, early) = application;
        let (mut from, mut to) = application.into_split();
        spawn_local(async move {
            to.write_all(&early).await.expect("echoed");
            tokio::io::copy(&mut from, &mut to).await
        });
        let mut received = vec![0; body.len()];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                timeout(LIMIT, reader.read_u8())
                    .await
                    .expect("in time")
                    .expect("a byte"),
            );
        }
        timeout(LIMIT, reader.read_exact(&mut received))
            .await
            .expect("in time")
            .expect("the body");
        assert!(received == body, "every byte came back");
    });
}

#[test]
fn a_503_is_tried_again_in_the_same_trace() {
    run(async {
        let world = World::new(retries(&["5xx"], false, 0)).await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut first = world.accept().await;
        let one = first.head().await;
        first.send("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").await;
        let mut second = world.accept().await;
        let two = second.head().await;
        second.send(OK).await;
        assert!(
            client.until("ok").await.starts_with("HTTP/1.1 200 OK"),
            "the client sees one answer"
        );
        let (one, two) = (
            field(&one, "traceparent").expect("one"),
            field(&two, "traceparent").expect("two"),
        );
        assert_eq!(one[..35], two[..35], "one trace");
        assert_ne!(one[36..52], two[36..52], "a span each");
        let retry = world.event_of("orders.service").await;
        assert_eq!((retry.kind, retry.status, retry.tries), ("retry", 503, 1));
        assert_eq!((&*retry.trace_id, &*retry.span_id), (&one[3..35], &one[36..52]));
        let ended = world.event_of("orders.service").await;
        assert_eq!(
            (ended.kind, ended.status, ended.tries, &*ended.span_id),
            ("request", 200, 2, &two[36..52])
        );
        let rows = world.stats().traffic;
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (&*row.unit, row.code_class, row.count, row.retries))
            .collect();
        let (nginx, orders) = ("nginx.service", "orders.service");
        assert_eq!(
            rows,
            [(nginx, "2xx", 1, 0), (nginx, "5xx", 1, 0), (orders, "2xx", 1, 1)]
        );
    });
}

#[test]
fn what_may_have_been_done_is_not_done_again() {
    run(async {
        let world = World::new(retries(&["5xx"], false, 0)).await;
        let mut client = Peer(world.client().await, Vec::new());
        client
            .send("POST /a HTTP/1.1\r\nHost: nginx\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        let mut application = world.accept().await;
        application.until("\r\n\r\nhi").await;
        application
            .send("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
            .await;
        assert!(client.until("busy").await.starts_with("HTTP/1.1 503 Busy"));
    });
}

#[test]
fn a_body_is_sent_again_as_it_was() {
    run(async {
        let world = World::new(retries(&["5xx"], true, 0)).await;
        let mut client = Peer(world.client().await, Vec::new());
        let body = "x".repeat(40_000) + "end";
        client
            .send(&format!(
                "POST /a HTTP/1.1\r\nHost: nginx\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        for answer in ["HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", OK] {
            let mut application = world.accept().await;
            let seen = application.until("end").await;
            assert_eq!(seen.split_once("\r\n\r\n").expect("a head").1, body);
            application.send(answer).await;
        }
        client.until("ok").await;
    });
}

#[test]
fn a_body_too_long_to_keep_is_sent_once() {
    run(async {
        let world = World::new(retries(&["5xx"], true, 0)).await;
        let mut client = Peer(world.client().await, Vec::new());
        let body = "x".repeat(super::REPLAY + 1) + "end";
        client
            .send(&format!(
                "POST /a HTTP/1.1\r\nHost: nginx\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        let mut application = world.accept().await;
        application.until("end").await;
        application.send("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno").await;
        assert!(client.until("no").await.starts_with("HTTP/1.1 500 No"));
    });
}

#[test]
fn a_silent_try_is_given_up() {
    run(async {
        let world = World::new(retries(&["reset"], false, 100)).await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut silent = world.accept().await;
        silent.head().await;
        let mut second = world.accept().await;
        second.head().await;
        second.send(OK).await;
        client.until("ok").await;
        assert!(silent.rest().await.is_err(), "the first try was broken off");
    });
}

#[test]
fn a_late_answer_is_504() {
    run(async {
        let world = World::new(|snapshot| {
            snapshot
                .services
                .iter_mut()
                .for_each(|service| service.traffic.timeout_ms = 100);
        })
        .await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        let reply = client.until("no response in time\n").await;
        assert!(reply.starts_with("HTTP/1.1 504 "), "{reply}");
        assert_eq!(field(&reply, "x-hostmesh-error"), Some("timeout"));
        let event = world.event().await;
        assert_eq!((event.kind, event.status), ("error", 504));
    });
}

#[test]
fn nobody_there_is_503() {
    run(async {
        let world = World::new(retries(&["connect-failure"], false, 0)).await;
        let mut client = Peer(world.client().await, Vec::new());
        let World {
            application,
            worker,
            events,
            shared,
            snapshot,
        } = world;
        drop(application);
        client.send("POST /a HTTP/1.1\r\nHost: nginx\r\n\r\n").await;
        let reply = client.until("no connection to the service\n").await;
        assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
        assert_eq!(field(&reply, "x-hostmesh-error"), Some("connect-failure"));
        let events = events.lock().await.batch(8).await;
        let mine = events.iter().filter(|event| event.unit == "orders.service");
        let tries: Vec<_> = mine.map(|event| (event.kind, event.tries)).collect();
        assert_eq!(
            tries,
            [("retry", 1), ("retry", 2), ("error", 3)],
            "what reached nobody may be tried again"
        );
        let gone = |snapshot: &mut Snapshot| {
            snapshot
                .services
                .iter_mut()
                .for_each(|service| service.endpoints.clear())
        };
        let mut snapshot = snapshot;
        gone(&mut snapshot);
        shared
            .set_config(Config::build(snapshot).expect("a config"))
            .expect("in force");
        client.send(GET).await;
        assert_eq!(field(&client.head().await, "x-hostmesh-error"), Some("no-endpoint"));
        drop(worker);
    });
}

#[test]
fn both_policies_judge_every_request() {
    run(async {
        let world = World::new(|snapshot| {
            snapshot.units[0].allow[0].paths = vec!["/a".into(), "/b/*".into()];
            snapshot.units[0].allow[0].methods = vec!["GET".into()];
        })
        .await;
        let mut client = Peer(world.client().await, Vec::new());
        for (request, status, word) in [
            ("GET /c HTTP/1.1\r\nHost: nginx\r\n\r\n", "403", "denied"),
            ("GET /b/../c HTTP/1.1\r\nHost: nginx\r\n\r\n", "400", "bad-path"),
            ("PUT /a HTTP/1.1\r\nHost: nginx\r\n\r\n", "403", "denied"),
        ] {
            client.send(request).await;
            let head = client.until("hostmesh: ").await + &client.until("\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert_eq!(field(&head, "x-hostmesh-error"), Some(word));
            assert!(!head.contains("toml"), "the rule is nobody's business outside: {head}");
            let denied = world.event().await;
            assert_eq!(
                (denied.kind, &*denied.unit, &*denied.peer),
                ("denied", "nginx.service", ORDERS)
            );
            let rule = if word == "denied" {
                "nginx.service.toml:no-allow"
            } else {
                "nginx.service.toml:8"
            };
            assert_eq!(denied.rule, rule);
            let told = world.event().await;
            assert_eq!(
                (told.kind, &*told.unit, told.status.to_string()),
                ("request", "orders.service", status.to_owned())
            );
        }
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        application.send(OK).await;
        client.until("ok").await;
        world.put(|snapshot| snapshot.units[1].outbound = Some(Vec::new()));
        client.send(GET).await;
        assert!(
            client.head().await.starts_with("HTTP/1.1 403 "),
            "a new policy is in force on an open connection"
        );
        assert_eq!(world.stats().denied["orders.service.toml:no-outbound"], 1);
    });
}

#[test]
fn audit_records_and_lets_pass() {
    run(async {
        let world = World::new(|snapshot| {
            snapshot.units[0].mode = "audit".into();
            snapshot.units[0].allow.clear();
        })
        .await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        application.send(OK).await;
        client.until("ok").await;
        let event = world.event().await;
        assert_eq!(
            (event.kind, event.verdict, &*event.rule),
            ("denied", "audit-deny", "nginx.service.toml:no-allow")
        );
    });
}

#[test]
fn an_application_that_closes_between_requests_is_nobodys_failure() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut first = world.accept().await;
        first.head().await;
        first.send(OK).await;
        client.until("ok").await;
        client.send(GET).await;
        first.head().await;
        drop(first); // it has read the request and dies of it
        let mut second = world.accept().await;
        second.head().await;
        second.send(OK).await;
        client.until("ok").await;
        drop(second);
        client.send("POST /a HTTP/1.1\r\nHost: nginx\r\n\r\n").await;
        let mut third = world.accept().await;
        assert!(
            third.head().await.starts_with("POST"),
            "a connection known to be dead is not used"
        );
        drop(third);
        assert!(
            client.head().await.starts_with("HTTP/1.1 502 "),
            "a new one that dies is a failure"
        );
    });
}

#[test]
fn what_breaks_off_is_not_made_to_look_whole() {
    run(async {
        for part in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nonly",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\nx\r\n",
        ] {
            let world = World::new(|_| ()).await;
            let mut client = Peer(world.client().await, Vec::new());
            client.send(GET).await;
            let mut application = world.accept().await;
            application.head().await;
            application.send(part).await;
            drop(application);
            let error = client.rest().await.expect_err("a reset");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            assert_eq!(world.event().await.message, "the service broke off its response");
        }
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        application.send("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
        drop(application);
        let whole = client.rest().await.expect("an orderly end");
        assert!(whole.ends_with("connection: close\r\n\r\nuntil the end"), "{whole}");
    });
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client
            .send("GET /a HTTP/1.1\r\nHost: nginx\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
            .await;
        let mut application = world.accept().await;
        let head = application.head().await;
        assert!(head.contains("Upgrade: websocket\r\nconnection: upgrade\r\n"), "{head}");
        application
            .send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
            .await;
        assert!(
            client
                .until("hello")
                .await
                .starts_with("HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nconnection: upgrade")
        );
        application.until("early").await;
        client.send("GET /not-judged HTTP/1.1\r\n\r\n").await;
        application.until("GET /not-judged HTTP/1.1\r\n\r\n").await;
        application.send("bye").await;
        drop(application);
        assert_eq!(client.rest().await.expect("an orderly end"), "bye");
    });
}

#[test]
fn a_client_that_waits_for_100_gets_it() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        let head = "POST /a HTTP/1.1\r\nHost: nginx\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        client.send(head).await;
        let mut application = world.accept().await;
        assert!(application.head().await.contains("Expect: 100-continue"));
        application.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("body").await;
        application.until("body").await;
        application.send(OK).await;
        client.until("ok").await;
        client.send(head).await;
        application.head().await;
        application.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n").await;
        assert!(
            client.rest().await.expect("an end").contains("connection: close"),
            "the body will not come"
        );
    });
}

#[test]
fn old_clients_and_bad_ones() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut old = Peer(world.client().await, Vec::new());
        old.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let mut application = world.accept().await;
        assert!(application.head().await.starts_with("GET /a HTTP/1.0\r\n"));
        application.send(OK).await;
        assert!(
            old.rest()
                .await
                .expect("an end")
                .contains("connection: close\r\n\r\nok")
        );
        for (bad, status) in [
            (
                "GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("GET /a HTTP/1.1\nHost: a\n\n", 400),
            ("GET /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ] {
            let mut client = Peer(world.client().await, Vec::new());
            client.send(&format!("{bad}{GET}")).await;
            let reply = client.rest().await.expect("an orderly end");
            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
            assert_eq!(reply.matches("HTTP/1.1").count(), 1, "what follows is not served");
        }
        let nothing = timeout(Duration::from_millis(50), world.application.accept()).await;
        assert!(nothing.is_err(), "the application heard nothing of it");
    });
}

#[test]
fn a_bad_chunk_ends_the_request_before_the_application_has_it() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client
            .send("POST /a HTTP/1.1\r\nHost: nginx\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
        let mut application = world.accept().await;
        application.until("abc\r\n").await;
        client.send("0\r\nContent-Length: 5\r\n\r\n").await;
        assert!(client.rest().await.expect("an answer").starts_with("HTTP/1.1 400 "));
        assert!(application.rest().await.is_err(), "broken off");
    });
}

#[test]
fn inbound_judges_and_says_who_calls() {
    run(async {
        let world = World::new(|snapshot| snapshot.units[0].allow[0].paths = vec!["/a".into()]).await;
        let mut caller = Peer(world.caller(inbound::Who::Identity(ORDERS.into())).await, Vec::new());
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        caller
            .send(&format!(
                "GET /a HTTP/1.1\r\nHost: nginx\r\nX-Hostmesh-Peer: forged\r\ntraceparent: {parent}\r\n\r\n"
            ))
            .await;
        let mut application = world.accept().await;
        let head = application.head().await;
        assert_eq!(head.to_ascii_lowercase().matches("x-hostmesh-peer").count(), 1);
        assert_eq!(field(&head, "x-hostmesh-peer"), Some(ORDERS));
        let trace = field(&head, "traceparent").expect("a trace");
        assert!(
            trace.starts_with(&parent[..36]) && trace != parent && trace.ends_with("-01"),
            "{trace}"
        );
        application
            .send("HTTP/1.1 200 OK\r\nx-hostmesh-error: connect-failure\r\nContent-Length: 2\r\n\r\nok")
            .await;
        assert!(
            !caller.until("ok").await.contains("x-hostmesh"),
            "an application cannot speak for the mesh"
        );
        caller.send("GET /b HTTP/1.1\r\nHost: nginx\r\n\r\n").await;
        let denied = caller.until("denied by policy\n").await;
        assert!(
            denied.starts_with("HTTP/1.1 403 ") && !denied.contains("toml"),
            "{denied}"
        );
        let (request, event) = (world.event().await, world.event().await);
        assert_eq!(
            (request.kind, request.status, &*request.rule),
            ("request", 200, "nginx.service.toml:8")
        );
        assert_eq!(request.trace_id, parent[3..35]);
        assert_eq!(
            (event.kind, &*event.rule, &*event.path),
            ("denied", "nginx.service.toml:no-allow", "/b")
        );
        caller.send(GET).await;
        application.head().await;
        application.send(OK).await;
        caller.until("ok").await;
        world.put(|snapshot| snapshot.units[0].deny = vec![rule("nginx.service.toml:9")]);
        caller.send(GET).await;
        assert!(
            caller.head().await.starts_with("HTTP/1.1 403 "),
            "a new policy is in force on an open stream"
        );
    });
}

fn rule(rule: &str) -> InboundRule {
    InboundRule {
        rule: rule.into(),
        callers: vec!["*".into()],
        ports: Vec::new(),
        methods: Vec::new(),
        paths: Vec::new(),
        headers: Vec::new(),
    }
}

#[test]
fn plain_text_is_judged_by_its_own_rules() {
    run(async {
        let world = World::new(|_| ()).await;
        let who = inbound::Who::Plaintext {
            address: LOCALHOST,
            local: true,
        };
        let mut caller = Peer(world.caller(who).await, Vec::new());
        caller.send(GET).await;
        assert!(caller.head().await.starts_with("HTTP/1.1 403 "));
        assert_eq!(world.event().await.rule, "nginx.service.toml:no-plaintext");
    });
}

#[test]
fn draining_ends_idle_connections_and_lets_requests_finish() {
    run(async {
        let world = World::new(|_| ()).await;
        let idle = Peer(world.client().await, Vec::new());
        let mut busy = Peer(world.client().await, Vec::new());
        busy.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        world.shared.drain();
        assert_eq!(idle.rest().await.expect("an orderly end"), "");
        application.send(OK).await;
        assert!(busy.rest().await.expect("an orderly end").ends_with("\r\n\r\nok"));
    });
}

#[test]
fn a_connection_that_waits_is_small() {
    run(async {
        let world = World::new(|_| ()).await;
        let (_, server) = pair().await;
        let unit = world
            .shared
            .config()
            .expect("a config")
            .unit_by_number(2)
            .expect("orders")
            .clone();
        let called = SocketAddr::new([240, 240, 0, 12].into(), 80);
        let future = outbound::serve(world.worker.clone(), unit, called, LOCALHOST, Stream::Tcp(server));
        let size = size_of_val(&future);
        assert!(size < 2_500, "{size} bytes");
    });
}
