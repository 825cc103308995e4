//! Routes of a service's policy, carried out: orders.service calls inventory, whose routes lead to nginx on this host.

use hostmesh_proxy_core::snapshot::Route;

use super::*;

const INVENTORY: [u8; 4] = [240, 240, 0, 11];

/// The world in which inventory has these routes.
async fn world(routes: &str, change: impl FnOnce(&mut Snapshot)) -> World {
    let routes: Vec<Route> = serde_json::from_str(routes).expect("routes");
    World::new(|snapshot| {
        let service = snapshot.services.iter_mut().find(|service| service.name == "inventory");
        service.expect("inventory").traffic.routes = routes;
        snapshot.units[1].access_log = "all".into();
        change(snapshot);
    })
    .await
}

async fn answer(client: &mut Peer, request: &str) -> String {
    client.send(request).await;
    client.head().await
}

#[test]
fn answers_of_the_policy_need_no_service() {
    run(async {
        let routes = r#"[
            {"name": "moved", "rule": "f:1", "match": {"path": "/p/{id}"}, "redirect": {"to": "https://shop/x/{id}", "status": 308}},
            {"name": "closed", "rule": "f:2", "match": {"path": "/closed"},
             "respond": {"status": 503, "body": "closed", "headers": [["retry-after", "60"]]}},
            {"name": "broken", "rule": "f:3", "match": {"path": "/broken"}, "fault": {"abort": 418, "abort_percent": 100}},
            {"name": "gone", "rule": "f:4", "match": {"path": "/gone"}, "to": [{"service": "nowhere", "weight": 1}]},
            {"name": "opaque", "rule": "f:5", "match": {"path": "/opaque"}, "to": [{"service": "redis-server", "weight": 1}]},
            {"name": "far", "rule": "f:6", "match": {"path": "/far"}, "to": [{"service": "nginx", "weight": 1}]}]"#;
        let world = world(routes, |snapshot| {
            let allow = |service: &str| hostmesh_proxy_core::snapshot::OutboundRule {
                rule: "o:1".into(),
                service: service.into(),
                host: String::new(),
                network: String::new(),
                port: 0,
            };
            let services = ["inventory", "redis-server"];
            snapshot.units[1].outbound = Some(services.map(allow).into());
        })
        .await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        for (path, status, flag, route) in [
            ("/p/7?a=b", "308", "redirected", "moved"),
            ("/closed", "503", "responded", "closed"),
            ("/broken", "418", "fault", "broken"),
            ("/gone", "503", "no-route", "gone"),
            ("/opaque", "503", "no-route", "opaque"),
            ("/far", "403", "denied", "far"),
            ("/p/../x", "400", "bad-path", "moved"),
        ] {
            let head = answer(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: inventory\r\n\r\n")).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
            assert_eq!(field(&head, "x-hostmesh-error"), Some(flag), "{path}");
            let event = world.event_of("orders.service").await;
            assert_eq!((&*event.route, event.flag), (route, flag), "{path}");
            let length = field(&head, "content-length")
                .expect("a length")
                .parse()
                .expect("a number");
            match path {
                "/p/7?a=b" => assert_eq!(field(&head, "location"), Some("https://shop/x/7?a=b")),
                "/closed" => assert_eq!((field(&head, "retry-after"), length), (Some("60"), 6)),
                _ => {}
            }
            let mut body = vec![0; length];
            while client.1.len() < length {
                client.0.read_buf(&mut client.1).await.expect("a body");
            }
            body.copy_from_slice(&client.1.drain(..length).collect::<Vec<_>>());
            if path == "/closed" {
                assert_eq!(body, b"closed");
            }
        }
    });
}

const ELSEWHERE: &str = r#"[{"name": "v2", "rule": "f:1", "match": {"path": "/p/{id}"},
    "to": [{"service": "nginx", "weight": 1}], "rewrite": {"path": "/v2/{id}", "host": "other"},
    "request_headers": {"set": [["x-set", "new"]], "add": [["x-add", "2"]], "remove": ["x-gone"]},
    "response_headers": {"set": [["server", "mesh"]], "remove": ["x-inner"]}}]"#;

#[test]
fn what_a_route_makes_of_a_request_is_judged_and_sent() {
    run(async {
        let world = world(ELSEWHERE, |snapshot| {
            snapshot.units[0].allow[0].paths = vec!["/v2/*".into()];
            snapshot.units[0].allow[0].headers = vec![("x-set".into(), "new".into())];
        })
        .await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        let sent = "GET /p/7?q=1 HTTP/1.1\r\nHost: inventory\r\nX-Set: old\r\nx_gone: 1\r\nx-add: 1\r\n\r\n";
        for _ in 0..2 {
            client.send(sent).await;
            let mut application = world.accept().await;
            let head = application.head().await;
            assert!(head.starts_with("GET /v2/7?q=1 HTTP/1.1\r\n"), "{head}");
            for line in [
                "host: other",
                "x-set: new",
                "x-add: 1",
                "x-add: 2",
                &format!("x-hostmesh-peer: {ORDERS}"),
            ] {
                assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
            }
            assert!(
                !head.contains("gone") && !head.contains("old") && !head.contains("inventory"),
                "{head}"
            );
            application
                .send("HTTP/1.1 200 OK\r\nServer: inner\r\nX-Inner: 1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                .await;
            let answered = client.until("ok").await;
            assert_eq!(field(&answered, "server"), Some("mesh"));
            assert!(
                !answered.contains("inner") && !answered.contains("X-Inner"),
                "{answered}"
            );
            let caller = world.event_of("orders.service").await;
            assert_eq!(
                (&*caller.route, &*caller.service, &*caller.path),
                ("v2", "nginx", "/p/7")
            );
        }
        assert!(
            answer(&mut client, "GET /v2/7 HTTP/1.1\r\nHost: inventory\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 503 "),
            "no route fits: inventory itself, which is on no host that can be reached"
        );
    });
}

#[test]
fn a_rewrite_cannot_open_what_the_called_unit_denies() {
    run(async {
        let world = world(ELSEWHERE, |snapshot| {
            snapshot.units[0].allow[0].paths = vec!["/p/*".into()];
        })
        .await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        let head = answer(&mut client, "GET /p/7 HTTP/1.1\r\nHost: inventory\r\n\r\n").await;
        assert!(
            head.starts_with("HTTP/1.1 403 "),
            "the rewritten path is judged: {head}"
        );
    });
}

#[test]
fn both_services_must_be_allowed_also_while_the_request_is_under_way() {
    run(async {
        let world = world(ELSEWHERE, |_| {}).await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        client.send("GET /p/7 HTTP/1.1\r\nHost: inventory\r\n\r\n").await;
        let mut application = world.accept().await;
        application.head().await;
        world.put(|snapshot| {
            snapshot.units[1].outbound = Some(vec![hostmesh_proxy_core::snapshot::OutboundRule {
                rule: "o:1".into(),
                service: "inventory".into(),
                host: String::new(),
                network: String::new(),
                port: 0,
            }]);
        });
        assert!(
            client.head().await.starts_with("HTTP/1.1 403 "),
            "nginx may not be called any more"
        );
    });
}

#[test]
fn a_route_has_its_own_time_and_tries() {
    run(async {
        let routes = r#"[{"name": "slow", "rule": "f:1", "to": [{"service": "nginx", "weight": 1}], "timeout_ms": 300,
            "retries": {"attempts": 2, "per_try_timeout_ms": 100, "on": ["5xx"], "budget": 1.0, "non_idempotent": false}}]"#;
        let world = world(routes, |_| {}).await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        let begun = tokio::time::Instant::now();
        client.send("GET /a HTTP/1.1\r\nHost: inventory\r\n\r\n").await;
        let (mut first, mut second) = (world.accept().await, world.accept().await);
        first.head().await;
        second.head().await;
        assert!(client.head().await.starts_with("HTTP/1.1 504 "));
        assert!((Duration::from_millis(190)..Duration::from_millis(1000)).contains(&begun.elapsed()));
    });
}

#[test]
fn a_request_is_held_back() {
    run(async {
        let routes = r#"[{"name": "held", "rule": "f:1", "to": [{"service": "nginx", "weight": 1}],
            "fault": {"delay_ms": 200, "delay_percent": 100}}]"#;
        let world = world(routes, |_| {}).await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        let begun = tokio::time::Instant::now();
        client.send("GET /a HTTP/1.1\r\nHost: inventory\r\n\r\n").await;
        let mut application = world.accept().await;
        assert!(begun.elapsed() >= Duration::from_millis(200));
        application.head().await;
        application.send(OK).await;
        client.until("ok").await;
        assert_eq!(world.event_of("orders.service").await.flag, "fault");
    });
}

#[test]
fn copies_are_counted_for_all_workers() {
    run(async {
        let routes = r#"[{"name": "copied", "rule": "f:1", "respond": null, "to": [{"service": "nginx", "weight": 1}],
            "mirror": {"to": "nginx", "percent": 100, "max_pending": 1}}]"#;
        let mut world = world(routes, |_| {}).await;
        let mut copies = Vec::new();
        for (seed, (mirrored, dropped)) in [(2, (1, 0)), (3, (1, 1)), (4, (2, 1))] {
            world.worker = Worker::new(world.shared.clone(), seed);
            let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
            client.send("GET /a HTTP/1.1\r\nHost: inventory\r\n\r\n").await;
            let mut serving = world.accept().await;
            serving.head().await;
            serving.send(OK).await;
            client.until("ok").await;
            let gauges = world.stats().gauges;
            assert_eq!((gauges["mirrored"], gauges["mirror_dropped"]), (mirrored, dropped));
            if dropped == 0 {
                let mut copy = world.accept().await;
                copy.head().await;
                copies.push(copy);
            } else if let Some(mut copy) = copies.pop() {
                copy.send("HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                    .await;
                drop(copy);
                while world.event_of("orders.service").await.flag != "mirrored" {}
            }
        }
    });
}

#[test]
fn a_mirror_gets_a_copy_and_slows_nobody() {
    run(async {
        let routes = r#"[{"name": "copied", "rule": "f:1", "respond": null, "to": [{"service": "nginx", "weight": 1}],
            "mirror": {"to": "nginx", "percent": 100, "max_pending": 2}}]"#;
        let world = world(routes, |_| {}).await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        let post = "POST /a HTTP/1.1\r\nHost: inventory\r\nContent-Length: 4\r\n\r\nbody";
        let mut application = None;
        let mut copies = Vec::new();
        for number in 0..3 {
            client.send(post).await;
            let mut serving = match application.take() {
                Some(serving) => serving,
                None => world.accept().await,
            };
            serving.until("body").await;
            serving.send(OK).await;
            client.until("ok").await;
            application = Some(serving);
            if number < 2 {
                let mut copy = world.accept().await;
                let head = copy.until("body").await;
                assert!(head.starts_with("POST /a HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("connection: close\r\n"), "{head}");
                copies.push(copy); // and is never answered
            }
        }
        let gauges = world.stats().gauges;
        assert_eq!(
            (gauges["mirrored"], gauges["mirror_dropped"]),
            (2, 1),
            "two are under way"
        );
        for mut copy in copies {
            copy.send("HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
        loop {
            let event = world.event_of("orders.service").await;
            if event.flag == "mirrored" {
                assert_eq!((event.kind, event.status, &*event.route), ("request", 500, "copied"));
                break;
            }
        }
    });
}

#[test]
fn a_mirror_that_speaks_http2_gets_its_copy_in_that() {
    run(async {
        let routes = r#"[{"name": "copied", "rule": "f:1", "respond": null, "to": [{"service": "nginx", "weight": 1}],
            "mirror": {"to": "nginx", "percent": 100, "max_pending": 1}}]"#;
        let world = world(routes, World::speaks_http2).await;
        let mut client = Peer(world.client_of(INVENTORY).await, Vec::new());
        let post = "POST /a?b=c HTTP/1.1\r\nHost: inventory\r\nX-Hostmesh-Peer: forged\r\n";
        let body = "x".repeat(65_536);
        let chunked = "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n3\r\nend\r\n0\r\n\r\n";
        client.send(&format!("{post}{chunked}")).await;
        let mut serving = world.accept_http2().await;
        for sent in ["bodyend", &body] {
            let (request, mut answer) = serving.recv().await.expect("a request");
            assert_eq!(data(&mut request.into_body()).await, sent);
            respond(&mut answer, 200);
            client.until("200").await;
            let mut copies = world.accept_http2().await;
            let (copy, mut answer) = copies.recv().await.expect("a copy");
            let (head, mut held) = copy.into_parts();
            assert_eq!(head.method, "POST");
            assert_eq!(head.uri, "http://inventory/a?b=c");
            assert_eq!(head.headers["x-hostmesh-peer"], ORDERS);
            assert!(head.headers.contains_key("traceparent") && !head.headers.contains_key("connection"));
            // What is one byte longer than the first window is answered before it is read.
            if sent.len() < body.len() {
                assert_eq!(data(&mut held).await, sent);
            }
            respond(&mut answer, 207);
            let copied = loop {
                let event = world.event_of("orders.service").await;
                if event.flag == "mirrored" {
                    break event;
                }
            };
            assert_eq!((copied.status, &*copied.route), (207, "copied"));
            assert!(copies.recv().await.is_none(), "its connection has ended");
            client
                .send(&format!("{post}Content-Length: {}\r\n\r\n{body}", body.len()))
                .await;
        }
    });
}
