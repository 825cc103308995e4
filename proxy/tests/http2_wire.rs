//! HTTP/2 and gRPC over the wire, from a client on h1 to an application on h2, and from either version to the other.

#[allow(dead_code)] // other tests use the rest
mod ends;

use bytes::Bytes;
use ends::http2::{all, application, ask, client, echo, post, serve};
use ends::web::{connect, mesh, put};
use ends::{Mesh, ORDERS, run, soon, until};
use h2::Reason;
use http::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// What a client of HTTP/1.1 gets for these bytes, to the end of the connection.
async fn raw(mesh: &Mesh, request: &str) -> String {
    let mut client = connect(mesh).await;
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut received = String::new();
    soon(client.read_to_string(&mut received)).await.expect("an end");
    received
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn bodies_and_trailers_come_back_whatever_their_length() {
    run(async {
        let mut mesh = mesh("http2").await;
        serve(&mut mesh);
        let client = client(&mesh).await;
        for length in [0, 1, 16_384, 65_537, 3_000_000] {
            let sent = pattern(length);
            let answer = ask(&client, post("/"), &sent).await.expect("an answer");
            assert_eq!(
                (answer.status, &answer.fields["x-peer"]),
                (StatusCode::OK, &ORDERS.parse().expect("a value"))
            );
            assert_eq!(answer.fields["x-authority"], "web");
            assert!(
                !answer.fields.contains_key("x-hostmesh-error"),
                "an application speaks for itself"
            );
            assert_eq!(answer.trailers["x-length"], length.to_string());
            assert!(answer.body == sent, "{length} bytes");
        }
        assert_eq!(
            (mesh.accepted.get(), mesh.h2.gauge("streams")),
            (1, 1),
            "one connection over one stream"
        );
    });
}

#[test]
fn a_thousand_streams_at_once_share_one_connection() {
    run(async {
        let mut mesh = mesh("grpc").await;
        serve(&mut mesh);
        let client = client(&mesh).await;
        let (mut open, mut held) = (Vec::new(), Vec::new());
        for _ in 0..1000 {
            let mut client = soon(client.clone().ready()).await.expect("a stream");
            let (response, send) = client.send_request(post("/"), false).expect("sent");
            open.push(response);
            held.push(send);
        }
        let mut bodies = Vec::new();
        for response in open {
            bodies.push(soon(response).await.expect("a response").into_body());
        }
        // All have begun, none has ended: both directions are open.
        for (index, send) in held.iter_mut().enumerate() {
            all(send, Bytes::from(index.to_string()), true).await;
        }
        for (index, body) in bodies.iter_mut().enumerate() {
            assert_eq!(soon(body.data()).await.expect("data").expect("data"), index.to_string());
            assert!(
                soon(body.data()).await.is_none(),
                "what went out in one frame comes in one"
            );
            let trailers = soon(body.trailers()).await.expect("trailers").expect("trailers");
            assert_eq!(trailers["grpc-status"], "0");
        }
        assert_eq!(mesh.accepted.get(), 1);
    });
}

#[test]
fn http1_clients_reach_applications_of_http2() {
    run(async {
        let mut mesh = mesh("http2").await;
        serve(&mut mesh);
        let sized =
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nCookie: a=1\r\nConnection: close\r\n\r\nhello";
        let received = raw(&mesh, sized).await;
        assert!(received.starts_with("HTTP/1.1 200 "), "{received}");
        assert!(received.contains(&format!("x-peer: {ORDERS}")), "{received}");
        assert!(received.contains("x-cookie: a=1\r\n"), "{received}");
        assert!(received.contains("transfer-encoding: chunked\r\n"), "{received}");
        assert!(
            received.ends_with("5\r\nhello\r\n0\r\nx-length: 5\r\ngrpc-status: 0\r\n\r\n"),
            "{received}"
        );
        let chunked = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nx-more: yes\r\n\r\n";
        let received = raw(&mesh, chunked).await;
        assert!(received.contains("3\r\nabc\r\n2\r\nde\r\n0\r\n"), "{received}");
        assert!(received.contains("x-more: yes\r\n"), "{received}");
        assert!(received.contains("x-length: 5\r\n"), "{received}");
    });
}

#[test]
fn http2_clients_reach_applications_of_http1() {
    run(async {
        let mesh = mesh("http").await;
        let client = client(&mesh).await;
        let request = Request::post("http://web/a?b=c")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let asked = spawn_local({
            let client = client.clone();
            async move { ask(&client, request, b"hello").await }
        });
        let mut application = mesh.arrives().await;
        let mut head = Vec::new();
        while !head.ends_with(b"0\r\n\r\n") {
            assert_ne!(soon(application.read_buf(&mut head)).await.expect("a request"), 0);
        }
        let head = String::from_utf8(head).expect("text");
        assert!(head.starts_with("POST /a?b=c HTTP/1.1\r\nhost: web\r\n"), "{head}");
        assert!(
            head.contains("cookie: a=1; b=2\r\n") && !head.contains("\r\nte:"),
            "{head}"
        );
        assert!(head.ends_with("transfer-encoding: chunked\r\n") || head.contains("transfer-encoding: chunked\r\n"));
        assert!(head.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{head}");
        let answer =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nok\r\n0\r\nx-end: yes\r\n\r\n";
        application.write_all(answer.as_bytes()).await.expect("sent");
        let answer = asked.await.expect("the task").expect("an answer");
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"ok"[..]));
        assert_eq!(
            (&answer.fields["x-a"], &answer.trailers["x-end"]),
            (&"b".parse().expect("a value"), &"yes".parse().expect("a value"))
        );
        assert!(!answer.fields.contains_key("transfer-encoding"));
        // The connection serves the next request, in its turn.
        let next =
            spawn_local(
                async move { ask(&client, Request::get("http://web/").body(()).expect("a request"), b"").await },
            );
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(soon(application.read_buf(&mut head)).await.expect("a request"), 0);
        }
        application
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .expect("sent");
        assert_eq!(
            next.await.expect("the task").expect("an answer").status,
            StatusCode::NO_CONTENT
        );
    });
}

#[test]
fn policy_answers_in_the_words_of_who_asks() {
    run(async {
        let mut mesh = mesh("grpc").await;
        serve(&mut mesh);
        let client = client(&mesh).await;
        let denied = ask(&client, post("/secret"), b"").await.expect("an answer");
        assert_eq!(
            (denied.status, &denied.fields["grpc-status"]),
            (StatusCode::OK, &7.into())
        );
        assert_eq!(denied.fields["x-hostmesh-error"], "denied");
        let plain = Request::get("http://web/secret").body(()).expect("a request");
        let denied = ask(&client, plain, b"").await.expect("an answer");
        assert_eq!(
            (denied.status, &denied.fields["x-hostmesh-error"]),
            (StatusCode::FORBIDDEN, &"denied".parse().expect("a value"))
        );
        let ambiguous = ask(
            &client,
            Request::get("http://web/x/%2e%2e/secret").body(()).expect("a request"),
            b"",
        );
        assert_eq!(ambiguous.await.expect("an answer").status, StatusCode::BAD_REQUEST);
        assert_eq!(
            ask(&client, post("/"), b"x").await.expect("an answer").status,
            StatusCode::OK,
            "the connection lives"
        );
        assert_eq!(mesh.h2.shared().stats.collect().denied["web.service.toml:7"], 3);
    });
}

#[test]
fn what_the_client_breaks_off_is_broken_off_at_the_application() {
    run(async {
        let mut mesh = mesh("http2").await;
        let listener = application(&mut mesh);
        let client = client(&mesh).await;
        let mut ready = soon(client.ready()).await.expect("a stream");
        let (response, mut send) = ready.send_request(post("/"), false).expect("sent");
        let tcp: TcpStream = soon(listener.accept()).await.expect("a connection").0;
        let mut connection = soon(h2::server::handshake(tcp)).await.expect("HTTP/2");
        let (mut request, mut respond) = soon(connection.accept()).await.expect("a request").expect("a request");
        spawn_local(async move { while let Some(Ok(_)) = connection.accept().await {} });
        let mut answer = respond.send_response(Response::new(()), false).expect("begun");
        let mut body = soon(response).await.expect("a response").into_body();
        answer.send_data(Bytes::from_static(b"first"), false).expect("sent");
        assert_eq!(soon(body.data()).await.expect("data").expect("data"), "first");
        send.send_reset(Reason::CANCEL);
        let ended = soon(request.body_mut().data())
            .await
            .expect("an error")
            .expect_err("an error");
        assert_eq!(ended.reason(), Some(Reason::CANCEL));
    });
}

#[test]
fn what_the_application_breaks_off_is_an_error_for_the_client() {
    run(async {
        let mut mesh = mesh("http2").await;
        serve(&mut mesh);
        let client = client(&mesh).await;
        let plain = Request::put("http://web/reset").body(()).expect("a request");
        let answer = ask(&client, plain, b"x").await.expect("an answer");
        assert_eq!(
            (answer.status, &answer.fields["x-hostmesh-error"]),
            (StatusCode::BAD_GATEWAY, &"reset".parse().expect("a value"))
        );
        let answer = ask(&client, post("/reset"), b"x").await.expect("an answer");
        assert_eq!(answer.fields["grpc-status"], "14");
    });
}

#[test]
fn an_application_that_goes_away_between_requests_is_nobodys_failure() {
    run(async {
        let mut mesh = mesh("http2").await;
        let listener = application(&mut mesh);
        spawn_local(async move {
            // Each connection serves one request and says GOAWAY.
            while let Ok((tcp, _)) = listener.accept().await {
                spawn_local(async move {
                    let mut connection = h2::server::handshake(tcp).await.expect("HTTP/2");
                    if let Some(Ok((request, respond))) = connection.accept().await {
                        connection.graceful_shutdown();
                        spawn_local(echo(request, respond));
                    }
                    while let Some(Ok(_)) = connection.accept().await {}
                });
            }
        });
        let client = client(&mesh).await;
        for round in 0..20 {
            let answer = ask(&client, post("/"), b"x").await.expect("an answer");
            assert_eq!(answer.status, StatusCode::OK, "round {round}");
            assert!(
                !answer.fields.contains_key("grpc-status"),
                "round {round}: {:?}",
                answer.fields
            );
        }
        until(|| mesh.h1.gauge("streams") <= 1).await;
    });
}

#[test]
fn clients_go_to_the_process_that_has_taken_over() {
    run(async {
        let mut mesh = mesh("http2").await;
        serve(&mut mesh);
        let client = client(&mesh).await;
        let mut ready = soon(client.clone().ready()).await.expect("a stream");
        let (response, mut send) = ready.send_request(post("/"), false).expect("sent");
        let mut body = soon(response).await.expect("a response").into_body();
        mesh.h1.shared().retire();
        let is_refused = || {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            matches!(client.clone().poll_ready(&mut cx), std::task::Poll::Ready(Err(_)))
        };
        until(is_refused).await;
        // What is open ends in its own time.
        all(&mut send, Bytes::from_static(b"late"), true).await;
        assert_eq!(soon(body.data()).await.expect("data").expect("data"), "late");
        assert!(soon(body.data()).await.is_none());
        assert_eq!(
            soon(body.trailers()).await.expect("an end").expect("trailers")["grpc-status"],
            "0"
        );
    });
}

#[test]
fn policy_answers_with_what_a_status_has() {
    run(async {
        let mesh = mesh("http2").await;
        put(&mesh, "h1", "http2", |snapshot| {
            let respond = |path: &str, status: u16, body: &str| {
                json!({"name": path, "rule": "web.service.toml:9", "match": {"path": path},
                       "respond": {"status": status, "body": body, "headers": [["x-a", "b"]]}})
            };
            let routes = json!([respond("/none", 204, ""), respond("/some", 418, "tea")]);
            snapshot.services[0].traffic.routes = serde_json::from_value(routes).expect("routes");
        });
        let client = client(&mesh).await;
        let get = |path: &str| Request::get(format!("http://web{path}")).body(()).expect("a request");
        let none = ask(&client, get("/none"), b"").await.expect("an answer");
        assert_eq!(
            (none.status, &none.fields["x-a"]),
            (StatusCode::NO_CONTENT, &"b".parse().expect("a value"))
        );
        assert!(!none.fields.contains_key("content-length") && none.body.is_empty());
        let some = ask(&client, get("/some"), b"").await.expect("an answer");
        assert_eq!(
            (some.status, &some.body[..], &some.fields["content-length"]),
            (StatusCode::IM_A_TEAPOT, &b"tea"[..], &3.into())
        );
    });
}
