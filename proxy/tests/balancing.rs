//! Who of two gets a request, who waits for room, and who is waited for no longer: with real connections.

#[allow(dead_code)] // other tests use the rest
mod ends;

use ends::twins::{OK, Peer, Twins, accepted, get};
use ends::{run, soon};
use hostmesh_proxy_core::snapshot::{Breaker, Hedge, Service};
use tokio::net::TcpListener;
use tokio::time::Instant;

#[test]
fn the_less_busy_one_is_asked_as_long_as_it_is() {
    run(async {
        let twins = Twins::new(|snapshot| snapshot.services[0].traffic.balance = "least-request".into()).await;
        let mut client = twins.client().await;
        client.send(&get("/")).await;
        let (mut busy, other) = twins.first("\r\n\r\n").await;
        let is_other_near = std::ptr::eq(other, &raw const twins.near);
        for _ in 0..10 {
            assert_eq!(twins.asked().await, is_other_near, "one is busy");
        }
        busy.send(OK).await;
        client.until("ok").await;
        let mut seen = [false; 2];
        for _ in 0..60 {
            seen[usize::from(twins.asked().await)] = true;
        }
        assert_eq!(seen, [true; 2], "none is busy");
    });
}

#[test]
fn who_was_overtaken_is_known_to_be_slow() {
    run(async {
        let twins = Twins::new(|snapshot| {
            let traffic = &mut snapshot.services[0].traffic;
            traffic.balance = "ewma".into();
            traffic.hedge = Some(Hedge {
                after_ms: 300,
                attempts: 2,
                non_idempotent: false,
            });
        })
        .await;
        let mut client = twins.client().await;
        client.send(&get("/")).await;
        let (slow, other) = twins.first("\r\n\r\n").await;
        let mut quick = accepted(other).await;
        quick.until("\r\n\r\n").await;
        quick.send(OK).await;
        client.until("ok").await;
        slow.ends().await;
        let is_quick_near = std::ptr::eq(other, &raw const twins.near);
        for _ in 0..10 {
            assert_eq!(twins.asked().await, is_quick_near);
        }
    });
}

#[test]
fn who_finds_no_room_waits_for_it_and_who_cannot_wait_is_refused() {
    run(async {
        let twins = Twins::new(|snapshot| {
            let service = &mut snapshot.services[0];
            service.endpoints.truncate(1);
            service.traffic.breaker = Some(Breaker {
                max_connections: 1,
                max_pending: 1,
                max_requests: 0,
                max_retries: 0,
                consecutive_errors: 0,
                eject_ms: 0,
                max_ejected: 0.0,
                rule: "web.service.toml:9".into(),
            });
        })
        .await;
        for _ in 0..3 {
            let mut first = twins.client().await;
            first.send(&get("/first")).await;
            let mut held = accepted(&twins.mesh.application).await;
            held.until("\r\n\r\n").await;
            let (mut second, mut third) = (twins.client().await, twins.client().await);
            second.send(&get("/next")).await;
            third.send(&get("/next")).await;
            let (refused, mut waiting): (_, Peer) = tokio::select! {
                head = second.until("\r\n\r\n") => (head, third),
                head = third.until("\r\n\r\n") => (head, second),
            };
            assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
            assert!(refused.contains("x-hostmesh-error: breaker-open\r\n"), "{refused}");
            held.send(OK).await;
            first.until("ok").await;
            let mut next = accepted(&twins.mesh.application).await;
            assert!(next.until("\r\n\r\n").await.starts_with("GET /next "));
            next.send(OK).await;
            assert!(waiting.until("ok").await.starts_with("HTTP/1.1 200 "));
        }
    });
}

#[test]
fn who_is_silent_is_waited_for_no_longer_than_the_policy_says() {
    run(async {
        let twins = Twins::new(|snapshot| snapshot.services[0].traffic.idle_timeout_ms = 200).await;
        let mut client = twins.client().await;
        let begun = Instant::now();
        client.send(&get("/")).await;
        let (silent, _) = twins.first("\r\n\r\n").await;
        assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 504 "));
        let waited = begun.elapsed();
        assert!(
            (200..2_000).contains(&waited.as_millis()),
            "{waited:?}: by no other limit"
        );
        silent.ends().await;
    });
}

#[test]
fn who_does_not_connect_in_time_is_not_there() {
    run(async {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = silent.local_addr().expect("an address").port();
        let twins = Twins::new(|snapshot| {
            let service = &mut snapshot.services[0];
            service.endpoints.truncate(1);
            service.endpoints[0].wire_port = port;
            service.traffic.connect_timeout_ms = 200;
            service.traffic.retries = None;
        })
        .await;
        let mut client = twins.client().await;
        client.send(&get("/")).await;
        let _accepted = soon(silent.accept()).await.expect("a connection");
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("x-hostmesh-error: connect-failure\r\n"), "{answer}");
    });
}

/// A port where nobody listens.
async fn closed() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

const POST: &str = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";

#[test]
fn who_cannot_be_reached_is_passed_over_though_no_policy_says_so() {
    run(async {
        let port = closed().await;
        let mut twins = Twins::new(|snapshot| {
            let service = &mut snapshot.services[0];
            service.endpoints[0].wire_port = port;
            service.traffic.retries = None;
        })
        .await;
        for _ in 0..2 {
            let mut client = twins.client().await;
            client.send(POST).await;
            let mut near = accepted(&twins.near).await;
            assert!(near.until("body").await.starts_with("POST / "));
            near.send(OK).await;
            assert!(client.until("ok").await.starts_with("HTTP/1.1 200 "));
        }
        let told = loop {
            let event = twins.event_of("orders.service").await;
            if event.kind == "retry" {
                break event;
            }
        };
        assert_eq!((&*told.endpoint, told.tries), ("web.service on h2", 1), "{told:?}");
        assert!(
            told.message.starts_with("nothing reached the service"),
            "{}",
            told.message
        );
    });
}

#[test]
fn where_nobody_can_be_reached_each_is_tried_once() {
    run(async {
        let port = closed().await;
        let mut twins = Twins::new(|snapshot| {
            let service = &mut snapshot.services[0];
            service.traffic.retries = None;
            for (endpoint, host) in service.endpoints.iter_mut().zip(["h2", "h3"]) {
                (endpoint.host, endpoint.wire_port) = (host.into(), port);
            }
        })
        .await;
        let mut client = twins.client().await;
        client.send(&get("/")).await;
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.contains("x-hostmesh-error: connect-failure\r\n"), "{answer}");
        let told = [
            twins.event_of("orders.service").await,
            twins.event_of("orders.service").await,
        ];
        let told = told.map(|event| (event.kind, event.tries));
        assert_eq!(told, [("retry", 1), ("error", 2)]);
    });
}

#[test]
fn a_policy_that_names_failures_to_connect_says_how_often() {
    run(async {
        let port = closed().await;
        let twins = Twins::new(|snapshot| {
            let Service { endpoints, traffic, .. } = &mut snapshot.services[0];
            endpoints[0].wire_port = port;
            let retries = traffic.retries.as_mut().expect("retries");
            (retries.attempts, retries.on) = (1, vec!["connect-failure".into()]);
        })
        .await;
        let mut refused = 0;
        for _ in 0..2 {
            let mut client = twins.client().await;
            client.send(&get("/")).await;
            tokio::select! {
                mut near = accepted(&twins.near) => {
                    near.until("\r\n\r\n").await;
                    near.send(OK).await;
                    assert!(client.until("ok").await.starts_with("HTTP/1.1 200 "));
                }
                answer = client.until("\r\n\r\n") => {
                    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 1, "they are asked in turn");
    });
}
