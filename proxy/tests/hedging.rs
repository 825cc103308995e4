//! What a slow endpoint costs where another may be asked, too, and who wins.

#[allow(dead_code)] // other tests use the rest
mod ends;

use std::time::Duration;

use ends::gate::{Gate, Question};
use ends::twins::{OK, Peer, Twins, accepted, get};
use ends::{WEB_UNIT, run};
use hostmesh_proxy::sockopt::abort;
use hostmesh_proxy_core::snapshot::{Hedge, Snapshot};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

const AFTER: Duration = Duration::from_millis(50);
const BUSY: &str = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\n";

async fn hedged(change: impl FnOnce(&mut Snapshot)) -> Twins {
    Twins::new(|snapshot| {
        snapshot.services[0].traffic.hedge = Some(Hedge {
            after_ms: 50,
            attempts: 2,
            non_idempotent: false,
        });
        change(snapshot);
    })
    .await
}

/// Nobody comes while a hedge would have been due several times.
async fn nobody_comes(listener: &TcpListener) -> bool {
    timeout(AFTER * 5, listener.accept()).await.is_err()
}

#[test]
fn who_answers_first_wins_and_the_other_is_left() {
    run(async {
        let mut twins = hedged(|_| {}).await;
        let mut client = twins.client().await;
        client.send(&get("/")).await;
        let (slow, other) = twins.first("\r\n\r\n").await;
        let begun = Instant::now();
        let mut quick = accepted(other).await;
        assert!(begun.elapsed() >= AFTER / 2, "not at once");
        quick.until("\r\n\r\n").await;
        quick.send(OK).await;
        assert!(client.until("ok").await.starts_with("HTTP/1.1 200 "));
        slow.ends().await;
        let hedge = twins.event_of("orders.service").await;
        assert_eq!((hedge.kind, hedge.tries), ("retry", 1));
        assert!(hedge.message.contains("another endpoint is asked, too"), "{hedge:?}");
        let ended = twins.event_of("orders.service").await;
        assert_eq!(
            (ended.kind, ended.status, ended.tries, ended.flag),
            ("request", 200, 2, "hedged")
        );
        let rows = twins.mesh.h1.shared().stats.collect().traffic;
        let orders = rows.iter().find(|row| &*row.unit == "orders.service").expect("a row");
        assert_eq!((orders.code_class, orders.count, orders.retries), ("2xx", 1, 1));
    });
}

#[test]
fn who_fails_first_does_not_win_but_the_last_failure_counts() {
    for (last, status) in [(OK, "200"), ("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nok", "500")] {
        run(async move {
            let twins = hedged(|_| {}).await;
            let mut client = twins.client().await;
            client.send(&get("/")).await;
            let (mut slow, other) = twins.first("\r\n\r\n").await;
            let mut quick = accepted(other).await;
            quick.until("\r\n\r\n").await;
            quick.send(BUSY).await;
            quick.ends().await;
            slow.send(last).await;
            let answer = client.until("ok").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        });
    }
}

#[test]
fn whom_its_policy_refuses_does_not_win() {
    run(async {
        let mut twins = hedged(|snapshot| snapshot.units[1].allow.clear()).await;
        let mut client = twins.client().await;
        let mut statuses = Vec::new();
        for _ in 0..4 {
            client.send(&get("/")).await;
            tokio::select! {
                mut far = accepted(&twins.mesh.application) => {
                    far.until("\r\n\r\n").await;
                    let denied = twins.event_of(WEB_UNIT).await;
                    assert_eq!((denied.kind, &*denied.rule), ("denied", "web.service.toml:no-allow"));
                    far.send(OK).await;
                    statuses.push(client.until("ok").await[9..12].to_owned());
                }
                refused = client.until("denied by policy\n") => {
                    let denied = twins.event_of(WEB_UNIT).await;
                    assert_eq!(denied.kind, "denied");
                    statuses.push(refused[9..12].to_owned());
                }
            }
        }
        statuses.sort();
        assert_eq!(
            statuses,
            ["200", "200", "403", "403"],
            "who was asked first alone may end it"
        );
    });
}

#[test]
fn what_may_not_happen_twice_goes_to_one() {
    for (method, length) in [("POST", 3), ("PUT", 100_000)] {
        run(async move {
            let twins = hedged(|_| {}).await;
            let mut client = twins.client().await;
            let body = "x".repeat(length) + "end";
            let head = format!(
                "{method} / HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            client.send(&(head + &body)).await;
            let (mut only, other) = twins.first("end").await;
            assert!(nobody_comes(other).await, "{method}");
            only.send(OK).await;
            client.until("ok").await;
        });
    }
}

#[test]
fn nobody_is_asked_twice() {
    run(async {
        let twins = hedged(|snapshot| snapshot.services[0].endpoints.truncate(1)).await;
        let mut client = twins.client().await;
        client.send(&get("/")).await;
        let far = &twins.mesh.application;
        let mut only = accepted(far).await;
        only.until("\r\n\r\n").await;
        assert!(nobody_comes(far).await);
        only.send(OK).await;
        client.until("ok").await;
    });
}

#[test]
fn hedges_beyond_the_budget_are_not_made() {
    run(async {
        let twins = hedged(|snapshot| {
            let retries = snapshot.services[0].traffic.retries.as_mut();
            retries.expect("retries").budget = 0.01;
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..40 {
            let mut client = twins.client().await;
            client.send(&get("/")).await;
            clients.push(client);
        }
        let mut held = Vec::new();
        loop {
            tokio::select! {
                near = twins.near.accept() => held.push(near.expect("a connection")),
                far = twins.mesh.application.accept() => held.push(far.expect("a connection")),
                () = tokio::time::sleep(AFTER * 10) => break,
            }
        }
        assert_eq!(held.len(), 40 + 30, "some may always be");
    });
}

#[test]
fn what_has_not_come_yet_goes_to_one() {
    run(async {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = silent.local_addr().expect("an address").port();
        let twins = hedged(|snapshot| snapshot.services[0].endpoints[0].wire_port = port).await;
        let is_silent = async || {
            let mut client = twins.client().await;
            client
                .send("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 6\r\n\r\n")
                .await;
            tokio::select! {
                _ = silent.accept() => {
                    assert!(nobody_comes(&twins.near).await, "its body is not here");
                    true
                }
                mut near = accepted(&twins.near) => {
                    near.until("\r\n\r\n").await;
                    client.send("a body").await;
                    near.until("a body").await;
                    near.send(OK).await;
                    client.until("ok").await;
                    false
                }
            }
        };
        assert!(is_silent().await || is_silent().await, "one after the other in turn");
    });
}

#[test]
fn each_has_its_own_time() {
    run(async {
        let twins = hedged(|snapshot| {
            let traffic = &mut snapshot.services[0].traffic;
            traffic.retries.as_mut().expect("retries").per_try_timeout_ms = 300;
        })
        .await;
        let mut client = twins.client().await;
        let begun = Instant::now();
        client.send(&get("/")).await;
        let (first, other) = twins.first("\r\n\r\n").await;
        let second = accepted(other).await;
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert!(begun.elapsed() >= Duration::from_millis(345), "{:?}", begun.elapsed());
        first.ends().await;
        second.ends().await;
    });
}

/// A request about which the far endpoint is silent, and the near one's gatekeeper is asked.
struct Asking {
    twins: Twins,
    client: Peer,
    far: Peer,
    question: Question,
}

impl Asking {
    async fn new(change: impl FnOnce(&mut Snapshot)) -> Self {
        let mut gate = Gate::new().await;
        let twins = hedged(|snapshot| {
            gate.guards(snapshot, 81);
            // Who is near answers before that.
            let hedge = snapshot.services[0].traffic.hedge.as_mut();
            hedge.expect("a hedge").after_ms = 200;
            change(snapshot);
        })
        .await;
        let mut client = twins.client().await;
        loop {
            client.send(&get("/")).await;
            tokio::select! {
                mut far = accepted(&twins.mesh.application) => {
                    far.until("\r\n\r\n").await;
                    let question = gate.asked().await;
                    return Self { twins, client, far, question };
                }
                // One after the other in turn: the next one is the far one's.
                question = gate.asked() => {
                    question.yes();
                    let mut near = accepted(&twins.near).await;
                    near.until("\r\n\r\n").await;
                    near.send(OK).await;
                    client.until("ok").await;
                }
            }
        }
    }
}

/// A failure that is seen: nobody waits for the rest of it.
async fn fails(mut far: Peer) -> Option<Peer> {
    far.send(BUSY).await;
    far.ends().await;
    None
}

async fn is_answered(mut client: Peer, status: &str) {
    let answer = client.until("\r\n\r\n").await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}

#[test]
fn who_answers_while_a_gatekeeper_is_asked_wins_and_the_question_withdrawn() {
    run(async {
        let mut asking = Asking::new(|_| {}).await;
        asking.far.send(OK).await;
        is_answered(asking.client, "200").await;
        asking.question.withdrawn().await;
        let mut twins = asking.twins;
        assert!(nobody_comes(&twins.near).await, "nobody was let in");
        loop {
            let event = twins.event_of("orders.service").await;
            if (event.kind, event.flag) == ("request", "hedged") {
                assert_eq!((event.status, event.tries), (200, 2));
                break;
            }
        }
    });
}

#[test]
fn who_fails_while_a_gatekeeper_is_asked_leaves_it_to_the_other() {
    for (is_let_in, status) in [(true, "200"), (false, "403")] {
        run(async move {
            let asking = Asking::new(|_| {}).await;
            fails(asking.far).await;
            if is_let_in {
                asking.question.yes();
                let mut near = accepted(&asking.twins.near).await;
                near.until("\r\n\r\n").await;
                near.send(OK).await;
            } else {
                asking.question.no();
            }
            is_answered(asking.client, status).await;
        });
    }
}

#[test]
fn no_gatekeeper_is_asked_for_longer_than_the_request_has() {
    for has_failed in [false, true] {
        run(async move {
            let asking = Asking::new(|snapshot| snapshot.services[0].traffic.timeout_ms = 1000).await;
            let far = match has_failed {
                true => fails(asking.far).await,
                false => Some(asking.far),
            };
            is_answered(asking.client, "504").await;
            asking.question.withdrawn().await;
            if let Some(far) = far {
                far.ends().await;
            }
        });
    }
}

#[test]
fn no_gatekeeper_is_asked_for_a_client_that_is_gone() {
    for has_failed in [false, true] {
        run(async move {
            let asking = Asking::new(|_| {}).await;
            let far = match has_failed {
                true => fails(asking.far).await,
                false => Some(asking.far),
            };
            abort(asking.client.0);
            asking.question.withdrawn().await;
            if let Some(far) = far {
                far.ends().await;
            }
        });
    }
}
