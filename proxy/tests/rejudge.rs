//! Open connections when policies change: what is denied ends at once and is told, what is allowed notices nothing.

#[allow(dead_code)] // each test file uses a part
mod ends;

use std::io::ErrorKind;
use std::time::Duration;

use ends::{Mesh, ORDERS, run, snapshot, soon, until};
use hostmesh_proxy::stream::Stream;
use hostmesh_proxy::traces::connection::Opening;
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NO_ALLOW: &str = "web.service.toml:no-allow";
/// Open at once in the test of what it costs; twice as many descriptors must be had.
const MANY: usize = 5_000;
/// What all of them may take together, of CPU.
const CHEAP: Duration = Duration::from_millis(100);

/// Puts h2's policies in force, changed.
fn put(mesh: &Mesh, change: impl FnOnce(&mut Snapshot)) {
    let mut snapshot = snapshot("h2", &[&mesh.ca], mesh.wire.port(), mesh.ports);
    change(&mut snapshot);
    mesh.h2
        .shared()
        .set_config(Config::build(snapshot).expect("a config"))
        .expect("in force");
}

fn other_line(snapshot: &mut Snapshot) {
    snapshot.units[0].allow[0].rule = "web.service.toml:77".into();
}

fn nobody(snapshot: &mut Snapshot) {
    snapshot.units[0].allow.clear();
}

async fn open(mesh: &Mesh) -> (Stream, TcpStream) {
    let (endpoint, unit) = (mesh.endpoint(), "orders.service".into());
    let opening = Opening::default();
    let opened = mesh.h1.worker.pool.open(&unit, &endpoint, mesh.ports[0], &opening);
    let (stream, application) = tokio::join!(soon(opened), mesh.arrives());
    (Stream::Wire(Box::new(stream.expect("a stream"))), application)
}

#[test]
fn a_denied_connection_is_reset_on_both_sides_and_told() {
    run(async {
        let mut mesh = Mesh::new().await;
        let (mut stream, mut application) = open(&mesh).await;
        stream.write_all(b"1234").await.expect("sent");
        let mut got = [0; 4];
        soon(application.read_exact(&mut got)).await.expect("there");
        put(&mesh, nobody);
        let refused = soon(stream.read(&mut got)).await.expect_err("not an end");
        assert_eq!(
            (refused.kind(), &*refused.to_string()),
            (ErrorKind::PermissionDenied, "refused by the other side's policy")
        );
        let reset = soon(application.read(&mut got)).await.expect_err("not an end");
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        let told = mesh.h2.event().await;
        assert_eq!(
            (
                told.kind,
                told.verdict,
                &*told.rule,
                &*told.unit,
                &*told.peer,
                told.bytes_in
            ),
            ("denied", "deny", NO_ALLOW, "web.service", ORDERS, 4)
        );
        let counted = mesh.h2.shared().stats.collect();
        assert_eq!(counted.denied[NO_ALLOW], 1);
        assert!(
            counted
                .traffic
                .iter()
                .any(|row| row.code_class == "denied" && row.bytes_in == 4)
        );
    });
}

#[test]
fn what_is_allowed_by_another_rule_loses_no_byte_and_a_unit_that_is_gone_lets_nobody_in() {
    run(async {
        let mut mesh = Mesh::new().await;
        let (mut stream, mut application) = open(&mesh).await;
        for change in [other_line, |_: &mut Snapshot| ()] {
            put(&mesh, change);
            stream.write_all(b"ping").await.expect("sent");
            let mut got = [0; 4];
            soon(application.read_exact(&mut got)).await.expect("there");
            application.write_all(b"pong").await.expect("sent");
            soon(stream.read_exact(&mut got)).await.expect("back");
            assert_eq!(&got, b"pong");
        }
        put(&mesh, |snapshot| drop(snapshot.units.remove(0)));
        soon(stream.read(&mut [0])).await.expect_err("ended");
        assert_eq!(mesh.h2.event().await.rule, "builtin:unknown-unit");
    });
}

#[test]
fn audit_tells_once_what_it_would_end() {
    run(async {
        let mut mesh = Mesh::new().await;
        let (mut stream, mut application) = open(&mesh).await;
        for _ in 0..2 {
            put(&mesh, |snapshot| {
                nobody(snapshot);
                snapshot.units[0].mode = "audit".into();
            });
            let told = mesh.h2.event().await;
            assert_eq!((told.verdict, &*told.rule), ("audit-deny", NO_ALLOW));
            put(&mesh, |snapshot| {
                nobody(snapshot);
                snapshot.units[0].mode = "audit".into();
                other_line_of_another(snapshot);
            });
            stream.write_all(b"ping").await.expect("sent");
            soon(application.read_exact(&mut [0; 4])).await.expect("there");
            put(&mesh, other_line);
            stream.write_all(b"ping").await.expect("sent");
            soon(application.read_exact(&mut [0; 4])).await.expect("there");
        }
        put(&mesh, nobody);
        assert_eq!(
            mesh.h2.event().await.verdict,
            "deny",
            "told twice: each time that it came to it"
        );
    });
}

fn other_line_of_another(snapshot: &mut Snapshot) {
    snapshot.units[1].access_log = "all".into();
}

fn own_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

#[test]
fn thousands_are_judged_again_in_little_time() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many as may be");
    run(async {
        let mesh = Mesh::new().await;
        let mut all = Vec::new();
        for _ in 0..MANY {
            all.push(open(&mesh).await);
        }
        // All who are woken stand in the queue before who is spawned after them.
        let judged = |change: fn(&mut Snapshot)| {
            let begun = own_cpu_time();
            put(&mesh, change);
            mesh.h2.worker.policies_changed.notify_waiters();
            tokio::task::spawn_local(async move { own_cpu_time() - begun })
        };
        let allowed = judged(other_line).await.expect("judged");
        assert!(allowed < CHEAP, "{MANY} judged again and let be: {allowed:?}");
        assert!(mesh.h2.shared().stats.collect().denied.is_empty());
        let denied = judged(nobody).await.expect("judged");
        assert!(denied < 5 * CHEAP, "{MANY} denied and told: {denied:?}");
        until(|| mesh.h2.shared().stats.collect().denied.get(NO_ALLOW) == Some(&(MANY as u64))).await;
        for (mut stream, _) in all {
            soon(stream.read(&mut [0])).await.expect_err("ended");
        }
    });
}
