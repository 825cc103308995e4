//! The agent's side of the socket, spoken for real: what is asked, what is garbage, who takes over.

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use tokio::task::LocalSet;

use super::*;
use crate::fixture::{Authority, Wrong, shared, snapshot};
use crate::persist::Persist;
use crate::unix_socket::listen;

/// A control thread of its own, as the process has one.
struct Proxy {
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

impl Proxy {
    fn start() -> Self {
        Self::start_for(nix::unistd::getuid().as_raw())
    }

    fn start_for(agent_uid: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (shared, source) = shared();
        let listener = listen(&folder.path().join("control.sock")).expect("listening");
        let generations = folder.path().join("generations.sock");
        let saver = Saver::start(Persist::new(folder.path()), shared.clone(), None).expect("a thread");
        let in_thread = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let serving = async {
                let generations =
                    Generations::listen(&generations, in_thread.clone(), Sums::default()).expect("listening");
                let svids = SvidStore::new(in_thread.clone());
                let mut control = Control::new(in_thread, svids, saver, source, generations);
                let listener = UnixListener::from_std(listener).expect("listening");
                control.serve(&listener, agent_uid).await
            };
            LocalSet::new().block_on(&runtime, serving);
        });
        Self { shared, folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn agent(&self) -> Agent {
        let stream = StdStream::connect(self.path()).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
        Agent {
            stream,
            events: Vec::new(),
            dropped: 0,
        }
    }
}

struct Agent {
    stream: StdStream,
    events: Vec<Value>,
    dropped: u64,
}

impl Agent {
    fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(&(bytes.len() as u32).to_be_bytes())
            .expect("sent");
        self.stream.write_all(bytes).expect("sent");
    }

    fn receive(&mut self) -> io::Result<Value> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut bytes)?;
        let message: Value = serde_json::from_slice(&bytes)?;
        if message["type"] == "events" {
            self.dropped += message["dropped"].as_u64().expect("a count");
            self.events
                .extend(message["events"].as_array().expect("events").iter().cloned());
        }
        Ok(message)
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.send(request.to_string().as_bytes());
        loop {
            let answer = self.receive().expect("an answer");
            if answer["type"] != "events" {
                return answer;
            }
        }
    }
}

#[test]
fn snapshot_request_chain_status_and_stats() {
    let (proxy, authority) = (Proxy::start(), Authority::new());
    let mut agent = proxy.agent();
    let status = agent.ask(&json!({"type": "get_status", "id": 1}));
    assert_eq!((&status["type"], &status["revision"]), (&json!("status"), &json!("")));
    let nack = agent.ask(&json!({"type": "get_csr", "id": 2, "unit": "nginx.service"}));
    assert_eq!((&nack["type"], &nack["id"]), (&json!("nack"), &json!(2)));
    assert_eq!(
        agent.ask(&json!({"type": "snapshot", "id": 3, "snapshot": snapshot(&authority)})),
        json!({"type": "ack", "id": 3})
    );
    let csr = agent.ask(&json!({"type": "get_csr", "id": 4, "unit": "nginx.service"}));
    let der = BASE64.decode(csr["csr"].as_str().expect("a request")).expect("base64");
    let chain = [BASE64.encode(authority.sign(&der, &Wrong::default()))];
    let ack = agent.ask(&json!({"type": "set_svid", "id": 5, "unit": "nginx.service", "chain": chain}));
    assert_eq!(ack, json!({"type": "ack", "id": 5}));
    let status = agent.ask(&json!({"type": "get_status", "id": 6}));
    assert_eq!((&status["revision"], &status["workers"]), (&json!("h1-1"), &json!(1)));
    assert_eq!(status["svids"][0]["spiffe_id"], "spiffe://mesh.local/unit/nginx");
    proxy.shared.stats.worker().denied("nginx.service.toml:7");
    let stats = agent.ask(&json!({"type": "get_stats", "id": 7}));
    assert_eq!(
        (&stats["denied"], stats["bounds_us"].as_array().map(Vec::len)),
        (&json!({"nginx.service.toml:7": 1}), Some(16))
    );
    assert_eq!(stats["gauges"]["events_dropped"], 0);
    assert_eq!(
        Persist::new(proxy.folder.path()).load().expect("read").expect("saved"),
        snapshot(&authority)
    );
}

#[test]
fn a_refused_snapshot_changes_nothing() {
    let (proxy, authority) = (Proxy::start(), Authority::new());
    let mut agent = proxy.agent();
    agent.ask(&json!({"type": "snapshot", "id": 1, "snapshot": snapshot(&authority)}));
    let mut twice = snapshot(&authority);
    twice.units.push(twice.units[0].clone());
    let mut unknown = serde_json::to_value(snapshot(&authority)).expect("a value");
    unknown["surprise"] = json!(1);
    let mut bundle = snapshot(&authority);
    bundle.trust_bundle = vec!["AAAA".into()];
    for (id, bad) in [
        serde_json::to_value(twice).expect("a value"),
        unknown,
        serde_json::to_value(bundle).expect("a value"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bad = bad;
        bad["revision"] = json!("bad");
        let answer = agent.ask(&json!({"type": "snapshot", "id": id, "snapshot": bad}));
        assert_eq!(
            (&answer["type"], &answer["id"]),
            (&json!("nack"), &json!(id)),
            "{answer}"
        );
        assert!(!answer["reason"].as_str().expect("a reason").is_empty());
        assert_eq!(proxy.shared.config().expect("in force").revision, "h1-1");
        assert_eq!(
            Persist::new(proxy.folder.path())
                .load()
                .expect("read")
                .expect("saved")
                .revision,
            "h1-1"
        );
    }
}

#[test]
fn other_ports_are_kept_for_the_restart_that_they_need() {
    let (proxy, authority) = (Proxy::start(), Authority::new());
    let mut agent = proxy.agent();
    agent.ask(&json!({"type": "snapshot", "id": 1, "snapshot": snapshot(&authority)}));
    let mut moved = snapshot(&authority);
    (moved.listeners.wire, moved.revision) = (15_108, "moved".into());
    let answer = agent.ask(&json!({"type": "snapshot", "id": 2, "snapshot": moved}));
    assert!(
        answer["reason"]
            .as_str()
            .expect("a reason")
            .contains("restart hostmesh-proxy.service"),
        "{answer}"
    );
    assert_eq!(proxy.shared.config().expect("in force").revision, "h1-1");
    assert_eq!(
        Persist::new(proxy.folder.path())
            .load()
            .expect("read")
            .expect("saved")
            .revision,
        "moved"
    );
}

#[test]
fn garbage_is_refused_or_ends_the_connection_and_the_next_is_served() {
    let proxy = Proxy::start();
    let mut agent = proxy.agent();
    for (request, id) in [
        (json!({"type": "launch", "id": 9}), 9),
        (json!({"id": 10}), 10),
        (json!({"type": "get_csr", "id": 11}), 11),
        (json!({"type": "get_status", "id": 12, "extra": true}), 12),
    ] {
        let answer = agent.ask(&request);
        assert_eq!(
            (&answer["type"], &answer["id"]),
            (&json!("nack"), &json!(id)),
            "{answer}"
        );
    }
    for garbage in [
        &b"\xff\xff\xff\xff"[..],
        b"\x00\x00\x00\x03{]}",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x02{}",
    ] {
        let mut agent = proxy.agent();
        agent.stream.write_all(garbage).expect("sent");
        let end = agent.receive().expect_err("closed");
        assert!(
            matches!(
                end.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ),
            "{end}"
        );
    }
    let mut half = proxy.agent();
    half.stream.write_all(b"\x00\x00\x01\x00{").expect("sent");
    drop(half);
    assert_eq!(
        proxy.agent().ask(&json!({"type": "get_status", "id": 1}))["type"],
        "status"
    );
}

#[test]
fn the_newest_agent_takes_over_even_from_one_that_does_not_read() {
    let proxy = Proxy::start();
    let mut first = proxy.agent();
    assert_eq!(first.ask(&json!({"type": "get_status", "id": 1}))["id"], 1);
    for _ in 0..QUEUE {
        proxy
            .shared
            .events
            .emit(Event::error("a.service", "inbound", "x".repeat(2000)));
    }
    let mut second = proxy.agent();
    assert_eq!(second.ask(&json!({"type": "get_status", "id": 2}))["id"], 2);
    while first.receive().is_ok() {}
    let told = first.events.len() + second.events.len();
    assert!(told <= QUEUE, "{told}");
    while second.events.len() + first.events.len() < QUEUE {
        second.receive().expect("the rest");
    }
    assert_eq!((first.dropped, second.dropped), (0, 0));
}

#[test]
fn events_wait_for_an_agent_and_what_does_not_fit_is_counted() {
    let proxy = Proxy::start();
    for index in 0..QUEUE + 5 {
        let rule = format!("a.service.toml:{index}");
        proxy
            .shared
            .events
            .emit(Event::denied("a.service", "inbound", &rule, "no".into()));
    }
    let mut agent = proxy.agent();
    while agent.events.len() < QUEUE {
        let batch = agent.receive().expect("a batch");
        assert!(batch["events"].as_array().expect("events").len() <= BATCH);
    }
    assert_eq!(agent.dropped, 5);
    assert!(
        agent
            .events
            .iter()
            .enumerate()
            .all(|(index, event)| event["rule"] == format!("a.service.toml:{index}")),
        "in order"
    );
    assert_eq!(agent.events[0]["verdict"], "deny");
    proxy
        .shared
        .events
        .emit(Event::error("a.service", "inbound", "later".into()));
    assert_eq!(agent.receive().expect("unasked")["events"][0]["message"], "later");
}

#[test]
fn others_than_the_agents_user_are_turned_away() {
    let proxy = Proxy::start_for(nix::unistd::getuid().as_raw() + 1);
    let end = proxy.agent().receive().expect_err("closed");
    assert!(
        matches!(
            end.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        "{end}"
    );
    let mode = std::fs::metadata(proxy.path()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, file) = (folder.path().join("control.sock"), folder.path().join("file"));
    drop(listen(&socket).expect("the first"));
    listen(&socket).expect("the second");
    std::fs::write(&file, "x").expect("written");
    assert!(listen(&file).is_err());
    assert_eq!(std::fs::read(&file).expect("still there"), b"x");
}

#[test]
fn who_looks_at_a_unit_is_shown_what_the_journal_does_not_want_and_nothing_of_before() {
    let proxy = Proxy::start();
    let mut agent = proxy.agent();
    let events = &proxy.shared.events;
    let made = |message: &str| Event::error("a.service", "inbound", message.to_owned());
    let tap = |agent: &mut Agent, units: &[&str]| {
        let ack = agent.ask(&json!({"type": "tap", "id": 1, "units": units}));
        assert_eq!(ack["type"], "ack");
    };
    events.tapped.push(made("of a look that is over"));
    tap(&mut agent, &["a.service"]);
    events.record(false, "a.service", || made("now"));
    let shown = agent.receive().expect("unasked");
    assert_eq!((&shown["type"], &shown["dropped"]), (&json!("tapped"), &json!(0)));
    assert_eq!(shown["events"].as_array().expect("events").len(), 1);
    assert_eq!(shown["events"][0]["message"], "now");
    tap(&mut agent, &[]);
    events.record(false, "a.service", || unreachable!("nobody looks any more"));
}
