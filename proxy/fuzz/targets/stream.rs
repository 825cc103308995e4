//! The wire: a peer with a sound SVID that says anything where HTTP/2 should begin. Whatever arrives at the application are
//! requests in the peer's name, and the next peer is served.
#![no_main]

#[allow(dead_code)] // tests use the rest
#[path = "../../tests/ends/mod.rs"]
mod ends;
#[allow(dead_code)]
#[path = "../../tests/hostile/mod.rs"]
mod hostile;

use ends::{ORDERS, WEB_SNI, ours, soon, tls};
use hostile::{ANSWER, Door, House};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// The application's port in the seeds.
const PORT: &[u8] = b"00000";

/// Both hosts, and the thread's runtime on which they live.
struct Bench {
    runtime: Runtime,
    tasks: LocalSet,
    house: House,
}

thread_local! {
    static BENCH: Bench = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let tasks = LocalSet::new();
        let house = tasks.block_on(&runtime, House::new());
        Bench { runtime, tasks, house }
    };
}

fuzz_target!(|bytes: &[u8]| {
    BENCH.with(|bench| bench.tasks.block_on(&bench.runtime, one(&bench.house, bytes)));
});

async fn one(house: &House, bytes: &[u8]) {
    house.expect(Door::Wire, &[]);
    let said = with_port(bytes, house.mesh.ports[0]);
    let svid = house.mesh.ca.orders();
    let mut peer = tls(&house.mesh, ours(&house.mesh, &svid), WEB_SNI).await.expect("TLS");
    // The other side may have hung up.
    if peer.write_all(&said).await.is_ok() && peer.shutdown().await.is_ok() {
        let mut heard = Vec::new();
        let _reset = soon(peer.read_to_end(&mut heard)).await;
    }
    for arrived in house.arrivals.others.borrow().iter() {
        let named = format!("\r\nx-hostmesh-peer: {ORDERS}\r\n");
        let found = arrived.windows(named.len()).any(|part| part == named.as_bytes());
        assert!(found, "in nobody's name: {}", arrived.escape_ascii());
    }
    let next = b"GET /next HTTP/1.1\r\nHost: web\r\n\r\n";
    house.expect(Door::Wire, &[next.to_vec()]);
    let mut client = house.client(Door::Wire).await;
    client.send(next).await;
    assert_eq!(
        soon(client.recv()).await.as_deref(),
        Some(ANSWER),
        "the next peer is served"
    );
}

fn with_port(bytes: &[u8], port: u16) -> Vec<u8> {
    let port = format!("{port:05}").into_bytes();
    let mut said = bytes.to_vec();
    for at in 0..said.len().saturating_sub(PORT.len() - 1) {
        if said[at..].starts_with(PORT) {
            said[at..at + PORT.len()].copy_from_slice(&port);
        }
    }
    said
}
