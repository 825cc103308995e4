//! Over real sockets on loopback. The interception in front of it is tried by the kernel tests of the project.

use std::net::UdpSocket as StdSocket;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;
use crate::dns_socket;
use crate::fdstore::Inherited;
use crate::fixture::{Authority, snapshot, with};
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::OutboundRule;

/// A question for type A in class IN.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// Serves what [`dns_socket::open`] opened on a free port, as the process does.
fn server() -> (Arc<Shared>, SocketAddr, WorkerStats) {
    let mut snapshot = snapshot(&Authority::new());
    snapshot.listeners.dns = StdSocket::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("its address")
        .port();
    let shared = with(snapshot);
    let config = shared.config().expect("in force");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, config.listeners.dns));
    (shared.clone(), address, shared.stats.worker())
}

const API: &str = "api.example.org";

/// With a unit that may call [`API`] and ask the resolver of this network; not the host's own, which a test can't be.
fn named(network: &str) -> (Arc<Shared>, Arc<Unit>, WorkerStats) {
    let mut snapshot = snapshot(&Authority::new());
    let rule = |host: &str, network: &str, port| OutboundRule {
        rule: "nginx.service.toml:20".into(),
        service: String::new(),
        host: host.into(),
        network: network.into(),
        port,
    };
    snapshot.units[0].outbound = Some(vec![rule(API, "", 443), rule("", network, 53)]);
    let shared = with(snapshot);
    let unit = shared.config().expect("in force").units[0].clone();
    (shared.clone(), unit, shared.stats.worker())
}

fn somebody(shared: &Shared) -> Arc<Unit> {
    shared.config().expect("in force").units[0].clone()
}

/// The answer to a query: 198.18.9.`last`, a second to live.
fn answered(query: &[u8], last: u8) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2] |= 0x80;
    bytes[7] = 1;
    bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 198, 18, 9, last]);
    bytes
}

fn run<F: Future<Output = T>, T>(body: F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(20), body).await.expect("in time")
    })
}

async fn marked(mark: u32) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("non-blocking");
    socket.set_mark(mark).expect("root, or CAP_NET_RAW");
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("bound");
    UdpSocket::from_std(socket.into()).expect("on the runtime")
}

async fn ask(socket: &UdpSocket, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 4096];
    socket.send_to(bytes, to).await.expect("sent");
    let (length, from) = timeout(Duration::from_secs(5), socket.recv_from(&mut answer))
        .await
        .expect("an answer")
        .expect("received");
    assert_eq!(from, to, "the answer comes from where the query went");
    answer.truncate(length);
    answer
}

#[test]
fn a_unit_that_is_known_by_its_mark_is_answered_and_others_are_refused() {
    let (shared, address, stats) = server();
    let config = shared.config().expect("in force");
    run(async move {
        for (_, socket) in dns_socket::open(&config, &Inherited::of(Vec::new())).expect("CAP_NET_RAW") {
            tokio::task::spawn_local(serve_udp(socket, shared.clone(), stats.clone()));
        }
        let question = query(0xbeef, "inventory.mesh");
        let answer = ask(&marked(0x0100_0001).await, address, &question).await;
        assert_eq!(&answer[..2], &question[..2]);
        assert_eq!(answer[3] & 0x0f, 0, "NOERROR");
        assert!(answer.ends_with(&[240, 240, 0, 11]), "{answer:?}");
        for stranger in [0, 0x0100_0fff, 0x0000_0001] {
            let answer = ask(&marked(stranger).await, address, &query(7, "inventory.mesh")).await;
            assert_eq!(
                (answer[3] & 0x0f, &answer[4..8]),
                (REFUSED, &[0, 1, 0, 0][..]),
                "mark {stranger:#x}"
            );
        }
        assert_eq!(shared.stats.gauge(Gauge::DnsAnswered), 1);
        assert_eq!(shared.stats.gauge(Gauge::DnsFailed), 3);
    });
}

#[test]
fn what_is_passed_on_comes_back_unchanged_and_forged_answers_do_not() {
    run(async {
        let (shared, _, stats) = server();
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a server");
        let to = server.local_addr().expect("its address");
        let question = Query {
            bytes: query(0x1234, "example.org"),
            from: to,
            to,
            mark: 0,
        };
        let expected = [&[0x12, 0x34][..], b"an answer that nobody parses \xff\x00"].concat();
        let good = expected.clone();
        tokio::task::spawn_local(async move {
            let mut bytes = [0; 512];
            let (length, from) = server.recv_from(&mut bytes).await.expect("the query");
            assert_eq!(&bytes[..length], &query(0x1234, "example.org")[..]);
            server.send_to(b"\x99\x99 another id", from).await.expect("sent");
            let other = UdpSocket::bind("127.0.0.1:0").await.expect("another server");
            other.send_to(b"\x12\x34 forged", from).await.expect("sent");
            server.send_to(&good, from).await.expect("sent");
        });
        assert_eq!(
            pass_on(&question, 0x0200_0000, &somebody(&shared), &shared, &stats).await,
            Some(expected)
        );
    });
}

#[test]
fn a_closed_port_is_a_failure_at_once() {
    run(async {
        let (shared, _, stats) = server();
        let to = StdSocket::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("its address");
        let question = Query {
            bytes: query(5, "example.org"),
            from: to,
            to,
            mark: 0,
        };
        let begun = Instant::now();
        let answer = pass_on(&question, 0, &somebody(&shared), &shared, &stats)
            .await
            .expect("an answer");
        assert_eq!((answer[3] & 0x0f, &answer[12..]), (SERVFAIL, &question.bytes[12..]));
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn tcp_answers_names_of_the_mesh_and_passes_the_others_on() {
    let (shared, _, stats) = server();
    let unit = somebody(&shared);
    run(async move {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a server");
        let to = upstream.local_addr().expect("its address");
        let front = TcpListener::bind("127.0.0.1:0").await.expect("the front");
        let mut client = TcpStream::connect(front.local_addr().expect("its address"))
            .await
            .expect("connected");
        let (accepted, _) = front.accept().await.expect("accepted");
        let served = tokio::task::spawn_local(async move { serve_tcp(accepted, to, &unit, &shared, &stats).await });
        let both = [
            framed(&query(1, "example.org")).expect("short"),
            framed(&query(2, "nginx")).expect("short"),
        ]
        .concat();
        client.write_all(&both[..20]).await.expect("sent");
        client.write_all(&both[20..]).await.expect("sent");
        let (mut theirs, _) = upstream.accept().await.expect("passed on");
        let mut asked = vec![0; framed(&query(1, "example.org")).expect("short").len()];
        theirs.read_exact(&mut asked).await.expect("the query");
        assert_eq!(asked, framed(&query(1, "example.org")).expect("short"));
        let mut client = Messages {
            stream: Some(client),
            buffer: Vec::new(),
        };
        let own = client.next().await.expect("read").expect("the own answer first");
        assert!(own[2..4] == [0, 2] && own.ends_with(&[240, 240, 0, 12]), "{own:?}");
        client
            .stream
            .as_mut()
            .expect("open")
            .shutdown()
            .await
            .expect("no more questions");
        assert_eq!(theirs.read(&mut [0; 1]).await.expect("the end is passed on"), 0);
        theirs.write_all(b"\x00\x05\x00\x01abc").await.expect("sent");
        assert_eq!(
            client.next().await.expect("read").expect("their answer"),
            b"\x00\x05\x00\x01abc"
        );
        drop(theirs);
        assert_eq!(client.next().await.expect("read"), None);
        served.await.expect("no panic").expect("a good end");
    });
}

#[test]
fn what_udp_passes_on_names_the_address_for_the_unit_that_asked() {
    run(async move {
        let (shared, unit, stats) = named("127.0.0.1/32");
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a server");
        let to = server.local_addr().expect("its address");
        tokio::task::spawn_local(async move {
            for last in [1, 2] {
                let mut bytes = [0; 512];
                let (length, from) = server.recv_from(&mut bytes).await.expect("the query");
                let bytes = answered(&bytes[..length], last);
                server.send_to(&bytes, from).await.expect("sent");
            }
        });
        for (last, name) in [(1, "API.example.org"), (2, "other.example.org")] {
            let question = Query {
                bytes: query(9, name),
                from: to,
                to,
                mark: 0,
            };
            let bytes = pass_on(&question, 0, &unit, &shared, &stats).await;
            assert_eq!(
                bytes,
                Some(answered(&question.bytes, last)),
                "as it is, whoever answers"
            );
        }
        let names = |unit: &Unit, last| shared.lookups.names(unit, Ipv4Addr::new(198, 18, 9, last).into());
        let known = names(&unit, 1);
        assert_eq!(known.iter().map(|name| &**name).collect::<Vec<_>>(), [API]);
        assert!(names(&unit, 2).is_empty(), "no rule has this name");
        let other = shared.config().expect("in force").units[1].clone();
        assert!(names(&other, 1).is_empty(), "another unit asked");
    });
}

/// The rule by which [`named`]'s unit is refused.
const REFUSER: &str = "nginx.service.toml:no-outbound";

#[test]
fn with_outbound_only_queries_go_on_and_only_to_whom_is_believed() {
    let (shared, unit, stats) = named("198.18.0.1/32");
    let mark = shared.config().expect("in force").marks.outbound | unit.number;
    let judged = |to: &str, bytes: Vec<u8>| {
        let asked = Query {
            bytes,
            from: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
            to: to.parse().expect("an address"),
            mark,
        };
        match judge(&shared, &stats, &asked) {
            Judged::PassedOn(..) => None,
            Judged::Answered(_, bytes) => Some(bytes.map(|bytes| bytes[3] & 0x0f)),
        }
    };
    let denied = || shared.stats.collect().denied.get(REFUSER).copied().unwrap_or(0);
    let mut reply = query(1, API);
    reply[2] |= 0x80;
    assert_eq!(judged("198.18.0.1:53", query(1, "any.example.org")), None);
    assert_eq!(judged("198.18.0.1:53", query(1, "inventory")), Some(Some(0)));
    assert_eq!(denied(), 0);
    assert_eq!(
        judged("198.18.0.2:53", query(1, "inventory")),
        Some(Some(0)),
        "of the mesh"
    );
    assert_eq!(judged("198.18.0.2:53", query(1, API)), Some(Some(REFUSED)));
    assert_eq!(judged("198.18.0.1:53", b"no DNS".to_vec()), Some(None));
    assert_eq!(
        judged("198.18.0.1:53", vec![0x55; 40]),
        Some(Some(REFUSED)),
        "no DNS either"
    );
    assert_eq!(judged("198.18.0.1:53", reply), Some(None), "an answer");
    assert_eq!(denied(), 4);
    let mut without = snapshot(&Authority::new());
    without.units[0].outbound = None;
    shared
        .set_config(Config::build(without).expect("a config"))
        .expect("in force");
    for bytes in [query(1, API), b"no DNS".to_vec()] {
        assert_eq!(judged("198.18.0.2:53", bytes), None, "without [outbound]");
    }
    assert_eq!(denied(), 4);
}

#[test]
fn with_outbound_tcp_is_refused_too_and_nothing_is_sent_there() {
    let (shared, unit, stats) = named("198.18.0.1/32");
    run(async move {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a server");
        let to = upstream.local_addr().expect("its address");
        let front = TcpListener::bind("127.0.0.1:0").await.expect("the front");
        let mut client = TcpStream::connect(front.local_addr().expect("its address"))
            .await
            .expect("connected");
        let (accepted, _) = front.accept().await.expect("accepted");
        let of_server = shared.clone();
        let served = tokio::task::spawn_local(async move { serve_tcp(accepted, to, &unit, &of_server, &stats).await });
        let all =
            [framed(&query(1, API)), framed(&query(2, "nginx")), framed(b"no DNS")].map(|one| one.expect("short"));
        client.write_all(&all.concat()).await.expect("sent");
        let mut client = Messages {
            stream: Some(client),
            buffer: Vec::new(),
        };
        let refused = client.next().await.expect("read").expect("a refusal");
        assert_eq!((&refused[2..4], refused[5] & 0x0f), (&[0, 1][..], REFUSED));
        let own = client.next().await.expect("read").expect("the mesh's own answer");
        assert!(own[2..4] == [0, 2] && own.ends_with(&[240, 240, 0, 12]), "{own:?}");
        assert_eq!(client.next().await.expect("read"), None, "what is no DNS ends it");
        served.await.expect("no panic").expect("a good end");
        assert_eq!(shared.stats.collect().denied.get(REFUSER), Some(&2));
        upstream
            .into_std()
            .expect("the listener")
            .accept()
            .expect_err("nobody came");
    });
}

#[test]
fn what_tcp_passes_on_names_the_address_too_by_id_and_question() {
    run(async {
        let (shared, unit, stats) = named("127.0.0.1");
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a server");
        let to = upstream.local_addr().expect("its address");
        let front = TcpListener::bind("127.0.0.1:0").await.expect("the front");
        let mut client = TcpStream::connect(front.local_addr().expect("its address"))
            .await
            .expect("connected");
        let (accepted, _) = front.accept().await.expect("accepted");
        let (of_server, of_unit) = (shared.clone(), unit.clone());
        let served =
            tokio::task::spawn_local(async move { serve_tcp(accepted, to, &of_unit, &of_server, &stats).await });
        let (first, second) = (query(1, API), query(2, API));
        let both = [framed(&first).expect("short"), framed(&second).expect("short")].concat();
        client.write_all(&both).await.expect("sent");
        let (mut theirs, _) = upstream.accept().await.expect("passed on");
        theirs.read_exact(&mut vec![0; both.len()]).await.expect("both queries");
        let mut unasked = answered(&first, 8);
        unasked[1] = 3;
        let answers = [unasked, answered(&second, 2), answered(&first, 1), answered(&first, 9)];
        let answers: Vec<u8> = answers.iter().flat_map(|bytes| framed(bytes).expect("short")).collect();
        theirs.write_all(&answers).await.expect("sent");
        let mut back = vec![0; answers.len()];
        client.read_exact(&mut back).await.expect("all of them");
        assert_eq!(back, answers);
        for (last, count) in [(1, 1), (2, 1), (8, 0), (9, 0)] {
            let names = shared.lookups.names(&unit, Ipv4Addr::new(198, 18, 9, last).into());
            assert_eq!(names.len(), count, "198.18.9.{last}");
        }
        drop((client, theirs));
        served.await.expect("no panic").expect("a good end");
        let mut without = snapshot(&Authority::new());
        without.units[0].outbound = None;
        shared
            .set_config(Config::build(without).expect("a config"))
            .expect("in force");
        assert!(
            shared
                .lookups
                .names(&unit, Ipv4Addr::new(198, 18, 9, 1).into())
                .is_empty(),
            "forgotten"
        );
    });
}

#[test]
fn what_is_no_query_gets_no_failure() {
    assert_eq!(failure(b"short", SERVFAIL), None);
    let mut answer = query(1, "a");
    answer[2] |= 0x80;
    assert_eq!(failure(&answer, SERVFAIL), None, "an answer is not answered");
    let mut looping = query(1, "a");
    looping[12] = 0xc0;
    let answer = failure(&looping, REFUSED).expect("an answer");
    assert_eq!(
        (answer.len(), &answer[4..6]),
        (12, &[0, 0][..]),
        "a question that does not parse is left out"
    );
}
