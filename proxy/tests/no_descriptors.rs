//! What this process lacks says nothing of those who are called. One test: the limit is the whole process's.

#[allow(dead_code)] // other tests use the rest
mod ends;

use std::fs::File;
use std::os::fd::AsRawFd;

use ends::run;
use ends::twins::{Twins, get};
use ends::web::ejecting_after;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const LIMIT: u64 = 256;
/// Where the numbers begin that are kept from traffic: a quarter of a small limit.
const KEPT_FROM: i32 = 192;

#[test]
fn no_endpoint_is_to_blame_for_it() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, hard).expect("a lower one");
    run(async {
        let mut twins = Twins::new(|snapshot| {
            snapshot.services[0].traffic.breaker = Some(ejecting_after(1, 60_000));
        })
        .await;
        let mut client = twins.client().await;
        let mut taken = Vec::new();
        while taken.last().is_none_or(|file: &File| file.as_raw_fd() < KEPT_FROM) {
            taken.push(File::open("/dev/null").expect("below the limit"));
        }
        client.send(&get("/")).await;
        let refused = client.until("\r\n\r\n").await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        let said = loop {
            let event = twins.event_of("orders.service").await;
            match event.kind {
                "retry" => {}
                _ => break event.message,
            }
        };
        assert!(said.contains("Raise LimitNOFILE="), "{said}");
        taken.clear();
        let asked = [twins.asked().await, twins.asked().await];
        assert_ne!(asked[0], asked[1], "in turn: none is ejected, none counts as away");
    });
}
