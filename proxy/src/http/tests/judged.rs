//! Both policies judge every request, by what the kernel or a certificate says of the caller.

use super::*;

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
            assert_eq!((&*denied.rule, denied.flag), (rule, word));
            assert_eq!(denied.message.contains("the path is ambiguous"), word == "bad-path");
            let told = world.event().await;
            assert_eq!(
                (told.kind, &*told.unit, told.status.to_string(), told.flag),
                ("request", "orders.service", status.to_owned(), word)
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
        jwt: None,
        audit: false,
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
