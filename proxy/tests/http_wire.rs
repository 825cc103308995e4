//! HTTP over the wire, from a client on h1 to an application on h2; hyper says what is right.

#[allow(dead_code)] // other tests use the rest
mod ends;

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use ends::web::{connect, mesh, put};
use ends::{Mesh, ORDERS, run, soon, until};
use hostmesh_proxy_core::snapshot::Snapshot;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

type Body = BoxBody<Bytes, Infallible>;

/// A hyper client that believes to be connected to the service.
async fn client(mesh: &Mesh) -> SendRequest<Body> {
    let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connect(mesh).await))
        .await
        .expect("a client");
    spawn_local(connection);
    send
}

/// A hyper server that sends every body back in chunks of odd lengths; counts its connections.
fn serve(mesh: &mut Mesh) -> Rc<Cell<usize>> {
    let placeholder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    placeholder.set_nonblocking(true).expect("an option");
    let placeholder = TcpListener::from_std(placeholder).expect("a listener");
    let listener = std::mem::replace(&mut mesh.application, placeholder);
    let connections = Rc::new(Cell::new(0));
    let count = connections.clone();
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.set(count.get() + 1);
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(echo));
            spawn_local(serving);
        }
    });
    connections
}

async fn echo(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let peer = request.headers()["x-hostmesh-peer"].clone();
    let sized = request.uri().path() == "/sized";
    let body = request.into_body().collect().await?.to_bytes();
    let body = if sized {
        Full::new(body).boxed()
    } else {
        in_pieces(body, 7919)
    };
    Ok(Response::builder()
        .header("x-peer", peer)
        .body(body)
        .expect("a response"))
}

/// A body without a length: hyper sends it in chunks.
fn in_pieces(body: Bytes, length: usize) -> Body {
    let pieces: Vec<_> = body
        .chunks(length)
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    StreamBody::new(tokio_stream(pieces)).boxed()
}

fn tokio_stream<T: Send + Sync + Unpin>(items: Vec<T>) -> impl futures_core::Stream<Item = T> + Send + Sync {
    struct Items<T>(std::vec::IntoIter<T>);
    impl<T: Unpin> futures_core::Stream for Items<T> {
        type Item = T;
        fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
            std::task::Poll::Ready(self.0.next())
        }
    }
    Items(items.into_iter())
}

fn pattern(length: usize) -> Bytes {
    (0..length)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

async fn ask(
    client: &mut SendRequest<Body>,
    method: Method,
    path: &str,
    body: Body,
) -> (StatusCode, http::HeaderMap, Bytes) {
    soon(client.ready()).await.expect("a connection");
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "web")
        .body(body)
        .expect("a request");
    let response = soon(client.send_request(request)).await.expect("a response");
    let (head, body) = response.into_parts();
    (
        head.status,
        head.headers,
        soon(body.collect()).await.expect("a body").to_bytes(),
    )
}

#[test]
fn bodies_of_all_lengths_come_back_as_hyper_sent_them() {
    run(async {
        let mut mesh = mesh("http").await;
        let connections = serve(&mut mesh);
        let mut client = client(&mesh).await;
        for length in [
            0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 1_000_000, 5_000_000,
        ] {
            for (path, chunked) in [("/sized", false), ("/sized", true), ("/", false), ("/", true)] {
                let sent = pattern(length);
                let body = if chunked {
                    in_pieces(sent.clone(), 4999)
                } else {
                    Full::new(sent.clone()).boxed()
                };
                let (status, headers, received) = ask(&mut client, Method::POST, path, body).await;
                assert_eq!(
                    (status, headers["x-peer"].as_bytes()),
                    (StatusCode::OK, ORDERS.as_bytes())
                );
                assert!(received == sent, "{length} bytes, chunked {chunked}, {path}");
            }
        }
        assert_eq!(connections.get(), 1, "40 requests, one connection to the application");
        assert_eq!(mesh.accepted.get(), 1, "one TLS connection");
        assert_eq!(mesh.h2.gauge("streams"), 1, "one stream, used again");
    });
}

#[test]
fn many_clients_share_the_streams_they_need() {
    run(async {
        let mut mesh = mesh("http").await;
        let connections = serve(&mut mesh);
        let mesh = Rc::new(mesh);
        let mut all = Vec::new();
        for index in 0..32usize {
            let mesh = mesh.clone();
            all.push(spawn_local(async move {
                let mut client = client(&mesh).await;
                for round in 0..20 {
                    let sent = pattern(index * 1000 + round);
                    let (status, _, received) = ask(&mut client, Method::PUT, "/", in_pieces(sent.clone(), 333)).await;
                    assert!(
                        status == StatusCode::OK && received == sent,
                        "client {index}, round {round}"
                    );
                }
            }));
        }
        for client in all {
            client.await.expect("a client");
        }
        assert!(connections.get() <= 32 && mesh.accepted.get() == 1);
        let rows = mesh.h1.shared().stats.collect().traffic;
        assert_eq!(
            rows.iter().map(|row| (row.code_class, row.count)).collect::<Vec<_>>(),
            [("2xx", 640)]
        );
    });
}

#[test]
fn the_other_sides_policy_answers_403_and_the_stream_lives_on() {
    run(async {
        let mut mesh = mesh("http").await;
        let connections = serve(&mut mesh);
        let mut client = client(&mesh).await;
        let nothing = || Full::new(Bytes::new()).boxed();
        let (status, headers, _) = ask(&mut client, Method::GET, "/secret", nothing()).await;
        assert_eq!(
            (status, headers["x-hostmesh-error"].as_bytes()),
            (StatusCode::FORBIDDEN, &b"denied"[..])
        );
        let (status, _, _) = ask(&mut client, Method::GET, "/x/%2e%2e/secret", nothing()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(connections.get(), 0, "the application has heard nothing");
        let (status, _, _) = ask(&mut client, Method::GET, "/", nothing()).await;
        assert_eq!((status, mesh.h2.gauge("streams")), (StatusCode::OK, 1));
        assert_eq!(mesh.h2.shared().stats.collect().denied["web.service.toml:7"], 2);
    });
}

#[test]
fn what_never_reached_the_application_is_tried_again_whatever_the_method() {
    run(async {
        let mut mesh = mesh("http").await;
        drop(std::mem::replace(
            &mut mesh.application,
            TcpListener::bind("127.0.0.1:0").await.expect("a port"),
        ));
        let mut client = client(&mesh).await;
        let (status, headers, _) = ask(&mut client, Method::POST, "/", Full::new(pattern(100)).boxed()).await;
        assert_eq!(
            (status, headers["x-hostmesh-error"].as_bytes()),
            (StatusCode::SERVICE_UNAVAILABLE, &b"connect-failure"[..])
        );
        let kinds = [mesh.h1.event().await, mesh.h1.event().await, mesh.h1.event().await];
        assert_eq!(
            kinds.map(|event| (event.kind, event.tries)),
            [("retry", 1), ("retry", 2), ("request", 3)]
        );
    });
}

#[test]
fn a_wire_that_dies_between_requests_is_nobodys_failure() {
    run(async {
        let mut mesh = mesh("http").await;
        let connections = serve(&mut mesh);
        let mut client = client(&mesh).await;
        for round in 1..=5 {
            let (status, _, _) = ask(&mut client, Method::GET, "/", Full::new(Bytes::new()).boxed()).await;
            assert_eq!((status, mesh.accepted.get()), (StatusCode::OK, round));
            // A certificate is renewed: streams of the one before are not used again.
            let (ca, h1) = (&mesh.ca, mesh.h1.shared());
            h1.set_svids(hostmesh_proxy::shared::Svids::new([ca.orders()]));
            let links = || mesh.h1.gauge("streams") == 0;
            until(links).await;
        }
        assert_eq!(connections.get(), 5);
    });
}

#[test]
fn an_application_that_dies_of_a_request_is_a_502() {
    run(async {
        let mesh = mesh("http").await;
        let mut client = client(&mesh).await;
        let request = Request::builder()
            .uri("/")
            .header("host", "web")
            .body(in_pieces(pattern(10), 3))
            .expect("a request");
        soon(client.ready()).await.expect("a connection");
        let response = spawn_local(client.send_request(request));
        let application = mesh.arrives().await;
        application.readable().await.expect("the request");
        drop(application);
        let response = soon(response).await.expect("a task").expect("an answer");
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(response.headers()["x-hostmesh-error"], "reset");
    });
}

#[test]
fn the_host_whose_policy_it_is_not_tells_that_the_other_side_ended_it() {
    let may_call_nobody = |snapshot: &mut Snapshot| snapshot.units[0].outbound = Some(Vec::new());
    let lets_nobody_in = |snapshot: &mut Snapshot| snapshot.units[0].allow.clear();
    for (by, change, has_begun) in [
        ("h1", may_call_nobody as fn(&mut Snapshot), false),
        ("h1", may_call_nobody, true),
        ("h2", lets_nobody_in, true),
    ] {
        run(async move {
            let mut mesh = mesh("http").await;
            let mut client = client(&mesh).await;
            soon(client.ready()).await.expect("a connection");
            let request = Request::builder().uri("/").header("host", "web");
            let request = request.body(Full::new(Bytes::new()).boxed()).expect("a request");
            let response = spawn_local(client.send_request(request));
            let mut application = mesh.arrives().await;
            soon(application.read(&mut [0; 1024])).await.expect("the request");
            if has_begun {
                let half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
                application.write_all(half).await.expect("sent");
                let body = soon(response).await.expect("a task").expect("a head").into_body();
                put(&mesh, by, "http", change);
                soon(body.collect()).await.expect_err("not made to look whole");
            } else {
                put(&mesh, by, "http", change);
                let answer = soon(response).await.expect("a task").expect("an answer");
                assert_eq!(answer.status(), StatusCode::FORBIDDEN);
            }
            let (ended, other) = if by == "h1" {
                (&mut mesh.h1.events, &mut mesh.h2.events)
            } else {
                (&mut mesh.h2.events, &mut mesh.h1.events)
            };
            let (denied, told) = (
                soon(ended.journal.batch(1)).await.remove(0),
                soon(other.journal.batch(1)).await.remove(0),
            );
            let status = if has_begun { 200 } else { 0 };
            assert_eq!((denied.kind, denied.status), ("denied", status));
            assert_eq!(
                (told.kind, told.status, &*told.message),
                ("error", status, "refused by the other side's policy")
            );
        });
    }
}
