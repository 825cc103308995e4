//! An endpoint is ejected by what comes of its tries: by statuses of HTTP and of gRPC, wherever these stand.

#[allow(dead_code)] // other tests use the rest
mod ends;

use bytes::Bytes;
use ends::http2::{application, ask, client, post};
use ends::web::{ejecting_after, mesh, put};
use ends::{Mesh, run};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::task::spawn_local;

/// An application of gRPC: `/head/14` is answered by a status alone, `/trailers/14` by a message before it, `/status/503`
/// by a status of HTTP.
fn serve(mesh: &mut Mesh) {
    let listener = application(mesh);
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            spawn_local(async move {
                let mut connection = h2::server::handshake(tcp).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    answer(&request, respond);
                }
            });
        }
    });
}

fn answer(request: &Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut words = request.uri().path().split('/').skip(1);
    let (place, status) = (words.next().expect("a place"), words.next().expect("a status"));
    let mut response = Response::builder().header("content-type", "application/grpc");
    match place {
        "status" => {
            let response = response.status(status).body(()).expect("a response");
            respond.send_response(response, true).expect("sent");
        }
        "head" => {
            response = response.header("grpc-status", status);
            respond
                .send_response(response.body(()).expect("a response"), true)
                .expect("sent");
        }
        _ => {
            let response = response.body(()).expect("a response");
            let mut send = respond.send_response(response, false).expect("begun");
            send.send_data(Bytes::from_static(b"a message"), false).expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().expect("a value"));
            send.send_trailers(trailers).expect("ended");
        }
    }
}

/// Where the only endpoint is ejected for so long after three errors.
async fn ejecting(eject_ms: u64) -> Mesh {
    let mut mesh = mesh("grpc").await;
    serve(&mut mesh);
    put(&mesh, "h1", "grpc", |snapshot| {
        snapshot.services[0].traffic.breaker = Some(ejecting_after(3, eject_ms));
    });
    mesh
}

/// Is it after three calls of this path, between which there is one of `between`?
async fn is_ejected(path: &str, between: Option<&str>) -> bool {
    let mesh = ejecting(60_000).await;
    let client = client(&mesh).await;
    let paths = [path, path].into_iter().chain(between).chain([path]);
    for path in paths {
        let answer = ask(&client, post(path), b"").await.expect("an answer");
        assert!(
            !answer.fields.contains_key("x-hostmesh-error"),
            "{path}: {:?}",
            answer.fields
        );
    }
    let answer = ask(&client, post("/head/0"), b"").await.expect("an answer");
    match answer.fields.get("x-hostmesh-error") {
        Some(word) => {
            assert_eq!(word, "ejected");
            assert_eq!(answer.fields["grpc-status"], "14");
            true
        }
        None => false,
    }
}

#[test]
fn three_errors_of_the_server_one_after_the_other_eject() {
    run(async {
        for status in [2, 4, 13, 14, 15] {
            for place in ["head", "trailers"] {
                let path = format!("/{place}/{status}");
                assert!(is_ejected(&path, None).await, "{path}");
            }
        }
        assert!(is_ejected("/status/503", None).await);
    });
}

#[test]
fn errors_of_the_caller_do_not_and_a_success_between_counts() {
    run(async {
        for path in ["/head/5", "/trailers/7", "/trailers/0", "/head/8", "/status/404"] {
            assert!(!is_ejected(path, None).await, "{path}");
        }
        for (path, between) in [
            ("/trailers/14", "/trailers/0"),
            ("/head/14", "/trailers/0"),
            ("/trailers/14", "/head/0"),
            ("/status/503", "/trailers/5"),
        ] {
            assert!(!is_ejected(path, Some(between)).await, "{path}, {between}");
        }
    });
}

#[test]
fn it_comes_back_and_is_ejected_again() {
    run(async {
        let mut mesh = ejecting(200).await;
        let client = client(&mesh).await;
        for round in 1..=3_u32 {
            for _ in 0..3 {
                let answer = ask(&client, post("/head/14"), b"").await.expect("an answer");
                assert!(!answer.fields.contains_key("x-hostmesh-error"), "round {round}");
            }
            let mut told = Vec::new();
            while told.len() < 2 {
                let event = mesh.h1.event().await;
                if event.kind == "breaker" {
                    told.push(event.message);
                }
            }
            let time = std::time::Duration::from_millis(200) * round;
            assert!(told[0].starts_with(&format!("ejected for {time:?}: ")), "{told:?}");
            assert!(told[1].starts_with("back from its ejection: "), "{told:?}");
        }
    });
}
