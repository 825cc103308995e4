//! Clients that send slowly, never to the end, or do not read: each is told and cut off in bounded time, counted, and holds
//! no connection of the application any longer.

#[allow(dead_code)] // other tests use the rest
mod ends;
#[allow(dead_code)]
mod hostile;

use std::time::Duration;

use ends::{End, run, until};
use hostile::{ANSWER, Client, Door, House};
use hostmesh_proxy_core::snapshot::Timeouts;
use tokio::time::{Instant, sleep, timeout};

const HEAD: Duration = Duration::from_millis(400);
const STALL: Duration = Duration::from_millis(600);
const IDLE: Duration = Duration::from_millis(900);
/// Whatever else the machine does.
const LATE: Duration = Duration::from_secs(5);

async fn house() -> House {
    let millis = |time: Duration| u64::try_from(time.as_millis()).expect("small");
    House::with(Timeouts {
        head_ms: millis(HEAD),
        stall_ms: millis(STALL),
        idle_ms: millis(IDLE),
    })
    .await
}

/// All that the client is told to its connection's end.
async fn told(client: &mut Client) -> String {
    let mut heard = Vec::new();
    let listen = async {
        while let Some(more) = client.recv().await {
            heard.extend(more);
        }
    };
    timeout(LATE, listen).await.expect("an end");
    String::from_utf8(heard).expect("text")
}

fn check_told(heard: &str, door: Door) {
    for line in [
        "HTTP/1.1 408 Request Timeout\r\n",
        "x-hostmesh-error: slow-request\r\n",
        "connection: close\r\n",
    ] {
        assert!(heard.contains(line), "{door:?}: {heard}");
    }
}

/// Clients that were cut off: by the called unit's proxy, or the caller's, whichever was first.
fn cut_off(house: &House) -> i64 {
    house.mesh.h1.gauge("slow_clients") + house.mesh.h2.gauge("slow_clients")
}

/// What the unit's journal says at the end where it was noticed.
async fn journal(house: &mut House) -> String {
    let noticed = |end: &End| end.gauge("slow_clients") > 0;
    let mesh = &mut house.mesh;
    let end = if noticed(&mesh.h1) { &mut mesh.h1 } else { &mut mesh.h2 };
    end.event().await.message
}

#[test]
fn a_head_that_stops_is_not_waited_for() {
    for door in [Door::Outbound, Door::Wire, Door::Plaintext] {
        run(async move {
            let mut house = house().await;
            let mut client = house.client(door).await;
            let begun = Instant::now();
            client.send(b"GET / HTTP/1.1\r\nHo").await;
            check_told(&told(&mut client).await, door);
            assert!(begun.elapsed() >= HEAD, "{door:?}: {:?}", begun.elapsed());
            assert_eq!(cut_off(&house), 1, "{door:?}");
            assert_eq!(journal(&mut house).await, "the request did not come in time");
            assert_eq!(house.arrivals.open.get(), 0, "nothing is opened for it");
        });
    }
}

#[test]
fn a_head_gains_no_time_by_each_line() {
    for door in [Door::Outbound, Door::Wire, Door::Plaintext] {
        run(async move {
            let house = house().await;
            let mut client = house.client(door).await;
            client.send(b"GET / HTTP/1.1\r\nHost: web\r\n").await;
            let begun = Instant::now();
            let heard = loop {
                tokio::select! {
                    heard = client.recv() => break heard.expect("an answer"),
                    () = sleep(HEAD / 8) => {}
                }
                assert!(begun.elapsed() < LATE, "{door:?}: is waited for");
                client.send(b"X-A: 1\r\n").await;
            };
            check_told(&String::from_utf8(heard).expect("text"), door);
            assert_eq!(cut_off(&house), 1, "{door:?}");
        });
    }
}

#[test]
fn a_body_that_stops_frees_the_application() {
    for door in [Door::Outbound, Door::Wire, Door::Plaintext] {
        run(async move {
            let mut house = house().await;
            let mut client = house.client(door).await;
            client
                .send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\nabc")
                .await;
            until(|| house.arrivals.open.get() == 1).await;
            check_told(&told(&mut client).await, door);
            until(|| house.arrivals.open.get() == 0).await;
            assert!(cut_off(&house) >= 1, "{door:?}");
            assert_eq!(journal(&mut house).await, "the request did not come in time");
        });
    }
}

#[test]
fn a_body_that_is_slow_and_goes_on_arrives() {
    for door in [Door::Outbound, Door::Plaintext] {
        run(async move {
            let house = house().await;
            let request = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\nabcdefghi";
            house.expect(door, &[request.to_vec()]);
            let mut client = house.client(door).await;
            let (head, body) = request.split_at(request.len() - 9);
            client.send(head).await;
            for byte in body {
                sleep(STALL / 8).await;
                client.send(&[*byte]).await;
            }
            assert_eq!(client.recv().await.as_deref(), Some(ANSWER), "{door:?}");
            assert_eq!(cut_off(&house), 0, "{door:?}");
        });
    }
}

#[test]
fn a_client_that_does_not_read_frees_the_application() {
    for door in [Door::Outbound, Door::Wire, Door::Plaintext] {
        run(async move {
            let mut house = house().await;
            // More than all windows and socket buffers hold.
            house.arrivals.more.set(48 * 1024 * 1024);
            let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
            house.expect(door, &[request.to_vec()]);
            let mut client = house.client(door).await;
            client.send(request).await;
            until(|| house.arrivals.open.get() == 1).await;
            until(|| house.arrivals.open.get() == 0).await;
            assert!(cut_off(&house) >= 1, "{door:?}");
            assert_eq!(journal(&mut house).await, "the client was too slow: cut off");
            let mut heard = 0;
            while let Some(more) = client.recv().await {
                heard += more.len();
            }
            assert!(
                heard < house.arrivals.more.get(),
                "{door:?}: what breaks off is not made to look whole"
            );
        });
    }
}

#[test]
fn a_connection_that_asks_nothing_ends_in_order() {
    for door in [Door::Outbound, Door::Wire, Door::Plaintext] {
        run(async move {
            let house = house().await;
            let begun = Instant::now();
            let mut silent = house.client(door).await;
            assert_eq!(told(&mut silent).await, "", "{door:?}");
            assert!(begun.elapsed() >= IDLE, "{door:?}: {:?}", begun.elapsed());

            let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n".to_vec();
            house.expect(door, &vec![request.clone(); 4]);
            let mut client = house.client(door).await;
            for _ in 0..4 {
                sleep(IDLE / 3).await;
                client.send(&request).await;
                assert_eq!(
                    client.recv().await.as_deref(),
                    Some(ANSWER),
                    "{door:?}: each request begins the time anew"
                );
            }
            assert_eq!(cut_off(&house), 0, "{door:?}: that is nobody's fault");
        });
    }
}
