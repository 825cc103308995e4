//! Messages pass as they came, and a connection outlives them or ends as it must.

use tokio::time::{Instant, sleep};

use super::*;

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
fn a_client_that_waits_for_100_is_not_slow_until_it_has_it() {
    run(async {
        let stall = Duration::from_millis(200);
        let world = World::new(|snapshot| snapshot.timeouts.stall_ms = 200).await;
        let mut client = Peer(world.client().await, Vec::new());
        client
            .send("POST /a HTTP/1.1\r\nHost: nginx\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .await;
        let mut application = world.accept().await;
        application.head().await;
        sleep(stall * 3).await;
        let asked = Instant::now();
        application.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(client.rest().await.expect("an answer").starts_with("HTTP/1.1 408 "));
        assert!(asked.elapsed() >= stall, "{:?}", asked.elapsed());
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

#[test]
fn a_client_that_is_gone_takes_its_request_along() {
    run(async {
        let world = World::new(|_| ()).await;
        let client = world.client().await;
        let mut client = Peer(client, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        crate::sockopt::abort(client.0);
        assert!(application.rest().await.is_err(), "nobody waits for this answer");
        let event = world.event_of("orders.service").await;
        assert_eq!((event.status, &*event.message), (0, "the client broke off"));
    });
}

#[test]
fn a_client_that_ends_its_side_still_has_its_answer() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        client.0.shutdown().await.expect("an end");
        let mut application = world.accept().await;
        application.head().await;
        application.send(OK).await;
        assert!(client.rest().await.expect("an orderly end").ends_with("\r\n\r\nok"));
    });
}

#[test]
fn what_comes_early_waits_for_its_turn() {
    run(async {
        let world = World::new(|_| ()).await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut application = world.accept().await;
        application.head().await;
        client.send("GET /b HTTP/1.1\r\nHost: nginx\r\n\r\n").await;
        tokio::task::yield_now().await;
        application.send(OK).await;
        client.until("ok").await;
        assert!(application.head().await.starts_with("GET /b"));
        application.send(OK).await;
        client.until("ok").await;
    });
}
