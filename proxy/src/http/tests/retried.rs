//! What is tried again, what is not, and when there is an end of it.

use hostmesh_proxy_core::snapshot::Limit;

use super::*;

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
        assert_eq!(&*retry.trace_id, &one[3..35]);
        let ended = world.event_of("orders.service").await;
        assert_eq!((ended.kind, ended.status, ended.tries), ("request", 200, 2));
        assert_ne!(retry.span_id, ended.span_id, "a try is not the request");
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
fn a_try_that_failed_gives_its_place_to_the_next() {
    run(async {
        let world = World::new(|snapshot| {
            retries(&["5xx"], false, 0)(snapshot);
            let nginx = &mut snapshot.units[0];
            nginx.limits = vec![Limit {
                of: nginx.allow[0].clone(),
                requests: 0,
                window_ms: 0,
                burst: 0,
                concurrent: 1,
                per: "caller".into(),
            }];
        })
        .await;
        let mut client = Peer(world.client().await, Vec::new());
        client.send(GET).await;
        let mut first = world.accept().await;
        first.head().await;
        first.send("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").await;
        let mut second = world.accept().await;
        second.head().await;
        second.send(OK).await;
        assert!(client.until("ok").await.starts_with("HTTP/1.1 200 OK"));
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
        let body = "x".repeat(super::super::REPLAY + 1) + "end";
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
            ..
        } = world;
        drop(application);
        client.send("POST /a HTTP/1.1\r\nHost: nginx\r\n\r\n").await;
        let reply = client.until("no connection to the service\n").await;
        assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
        assert_eq!(field(&reply, "x-hostmesh-error"), Some("connect-failure"));
        let events = events.lock().await.journal.batch(8).await;
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
fn a_try_in_http2_that_ends_amid_a_body_leaves_the_rest_to_the_next() {
    run(async {
        let world = World::new(|snapshot| {
            retries(&["reset"], false, 0)(snapshot);
            World::speaks_http2(snapshot);
            let nginx = snapshot.services.iter_mut().find(|service| service.name == "nginx");
            nginx.expect("nginx").traffic.idle_timeout_ms = 200;
        })
        .await;
        let mut client = Peer(world.client().await, Vec::new());
        let put = "PUT /a HTTP/1.1\r\nHost: nginx\r\nContent-Length: 8\r\n\r\n";
        client.send(&format!("{put}body")).await;
        let mut serving = world.accept_http2().await;
        let _silent = serving.recv().await.expect("the first try");
        let (again, mut answer) = serving.recv().await.expect("the second");
        client.send(&format!("more{GET}")).await;
        assert_eq!(data(&mut again.into_body()).await, "bodymore");
        respond(&mut answer, 200);
        let (next, mut answer) = serving.recv().await.expect("the next request");
        assert_eq!((next.method().as_str(), next.uri().path()), ("GET", "/a"));
        respond(&mut answer, 204);
        client.until("204").await;
    });
}
