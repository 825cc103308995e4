//! Two generations in one process: what is handed over, who follows, what is summed up, and when one cannot go on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::snapshot::Snapshot;
use tokio::net::UnixStream;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::channel::channel;
use super::follow::Follower;
use super::handover::{self, Estate};
use super::lead::{Arrival, Generations};
use super::sums::Sums;
use super::*;
use crate::events::EventSource;
use crate::fdstore::Inherited;
use crate::fixture::{Authority, Wrong, shared, snapshot, with};
use crate::identity::SvidStore;
use crate::sealed::{Sealed, seal};
use crate::stats::Gauge;

const PATIENCE: Duration = Duration::from_secs(10);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let in_time = async { timeout(PATIENCE, test).await.expect("in time") };
    LocalSet::new().block_on(&runtime.expect("a runtime"), in_time);
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

fn named(revision: &str, authority: &Authority) -> Snapshot {
    Snapshot {
        revision: revision.into(),
        ..snapshot(authority)
    }
}

#[test]
fn descriptors_come_in_their_order_with_their_names() {
    run(async {
        let (one, other) = UnixStream::pair().expect("a pair");
        let ((mut sender, _keep), (_also, mut receiver)) = (channel(one), channel(other));
        let all: Vec<_> = (0..600)
            .map(|number| {
                let unit = format!("unit-{number}");
                let sealed = Sealed {
                    unit: unit.clone(),
                    key: vec![1].into(),
                    chain: Vec::new(),
                };
                (unit, seal(&sealed).expect("sealed"))
            })
            .collect();
        let giving = async {
            sender.give(&all).await.expect("given");
            sender.send(&Message::Serving).await.expect("said");
        };
        let taking = async {
            let mut got = Vec::new();
            loop {
                match receiver.receive().await.expect("heard") {
                    Message::Descriptors { names } => got.extend(receiver.descriptors(names).expect("descriptors")),
                    _ => return got,
                }
            }
        };
        let ((), got) = tokio::join!(giving, taking);
        assert_eq!(got.len(), 600);
        for (number, (name, fd)) in got.into_iter().enumerate() {
            let mut bytes = vec![0; 64];
            let length = File::from(fd).read_at(&mut bytes, 0).expect("read");
            let unit = format!("unit-{number}");
            assert_eq!(name, unit);
            assert!(
                bytes[..length].windows(unit.len()).any(|part| part == unit.as_bytes()),
                "{name} is another's"
            );
        }
    });
}

/// A socket folder, and whoever leads by it.
struct World {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    authority: Authority,
    shared: Arc<Shared>,
    events: EventSource,
}

impl World {
    fn new() -> (Self, Generations) {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join(SOCKET);
        let (shared, events) = shared();
        let generations = Generations::listen(&socket, shared.clone(), Sums::default()).expect("listening");
        let world = Self {
            _folder: folder,
            socket,
            authority: Authority::new(),
            shared,
            events,
        };
        (world, generations)
    }

    fn follower(&self) -> (Arc<Shared>, Follower) {
        let (shared, source) = shared();
        shared.retire();
        let follower = Follower::new(
            shared.clone(),
            SvidStore::new(shared.clone()),
            source,
            Vec::new(),
            &self.socket,
        );
        (shared, follower)
    }
}

async fn newcomer(generations: &mut Generations) -> lead::Newcomer {
    match generations.next().await {
        Arrival::Newcomer(newcomer) => newcomer,
        Arrival::Successor(_) => panic!("somebody takes over"),
    }
}

#[test]
fn a_new_process_gets_all_and_the_old_one_goes_on_when_it_does_not_serve() {
    run(async {
        let (world, mut generations) = World::new();
        let estate = Estate {
            descriptors: vec![("listen-x".into(), File::open("/dev/null").expect("open").into())],
            snapshot: Some("as it came".into()),
            watchdog: Some(Duration::from_secs(10)),
            sums: Sums::default(),
            learned: Vec::new(),
        };
        for serves in [false, true] {
            let old = async {
                let Arrival::Successor(mut successor) = generations.next().await else {
                    panic!("somebody follows");
                };
                let installed = successor.install(&estate).await;
                assert_eq!(installed.is_ok(), serves, "{installed:?}");
                if serves {
                    successor.retired(Sums::default()).await.expect("said");
                }
            };
            let new = async {
                let taken = handover::take_over(&world.socket).await.expect("heard");
                let (got, old) = taken.expect("somebody leads");
                assert_eq!(got.descriptors[0].0, "listen-x");
                assert_eq!((&got.snapshot, got.watchdog), (&estate.snapshot, estate.watchdog));
                if serves {
                    old.succeed().await.expect("retired");
                }
            };
            tokio::join!(old, new);
        }
        let nobody = world.socket.with_file_name("none.sock");
        assert!(handover::take_over(&nobody).await.expect("heard").is_none());
    });
}

#[test]
fn one_from_before_has_what_is_in_force_and_its_counts_stay_in_the_sum() {
    run(async {
        let (mut world, mut generations) = World::new();
        let one = named("one", &world.authority);
        let leading = with(one.clone());
        let mut svids = SvidStore::new(leading);
        let csr = svids.request("nginx.service").expect("a request");
        let chain = vec![world.authority.sign(&csr, &Wrong::default())];
        let (shared, mut follower) = world.follower();
        {
            let following = follower.follow();
            let leading = async {
                let newcomer = newcomer(&mut generations).await;
                generations.lead(newcomer, Some(one), Vec::new()).expect("led");
                until(|| shared.config().is_some_and(|config| config.revision == "one")).await;
                svids.set("nginx.service", chain).expect("in force");
                generations.tell_svids(|| svids.sealed_of("nginx.service"));
                until(|| shared.svids().by_unit("nginx.service").is_some()).await;
                generations.tell_snapshot(&named("two", &world.authority));
                until(|| shared.config().is_some_and(|config| config.revision == "two")).await;
                let stats = shared.stats.worker();
                stats.denied("a.toml:1");
                stats.add(Gauge::Connections, 3);
                shared.events.emit(Event::error("a.service", "inbound", "seen".into()));
                until(|| {
                    generations
                        .sums()
                        .there()
                        .iter()
                        .any(|retired| retired.connections == 3)
                })
                .await;
            };
            tokio::select! {
                why = following => panic!("{why}"),
                () = leading => {}
            }
        }
        assert_eq!(world.events.journal.batch(9).await[0].message, "seen");
        let farewell = follower.say_farewell();
        let hearing = async {
            let newcomer = newcomer(&mut generations).await;
            generations.lead(newcomer, None, Vec::new()).expect("led");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            said = farewell => said.expect("heard"),
            () = hearing => {}
        }
        let mut all = world.shared.counts();
        generations.sums().add_to(&mut all);
        let open = all.gauges.get("connections").copied().unwrap_or_default();
        assert_eq!((all.denied["a.toml:1"], open), (1, 0));
        assert!(generations.sums().there().is_empty());
    });
}

#[test]
fn what_was_seen_is_told_again_when_whoever_led_did_not_hear_it() {
    run(async {
        let (world, _generations) = World::new();
        let (shared, mut follower) = world.follower();
        shared.events.emit(Event::error("a.service", "inbound", "seen".into()));
        shared.events.journal.count_dropped(7);
        let (ours, its) = UnixStream::pair().expect("a pair");
        drop(its);
        follower.tell(&mut channel(ours).0).await.expect_err("nobody hears");
        let (ours, its) = UnixStream::pair().expect("a pair");
        follower.tell(&mut channel(ours).0).await.expect("said");
        let Message::Events { events, dropped } = channel(its).1.receive().await.expect("heard") else {
            panic!("something else");
        };
        assert_eq!((&*events[0].message, events.len(), dropped), ("seen", 1, 7));
    });
}

#[test]
fn one_that_does_not_understand_the_policy_of_now_does_not_go_on() {
    run(async {
        let (world, mut generations) = World::new();
        let (shared, mut follower) = world.follower();
        let newer = Snapshot {
            version: 2,
            ..named("newer", &world.authority)
        };
        let leading = async {
            let newcomer = newcomer(&mut generations).await;
            generations.lead(newcomer, Some(newer), Vec::new()).expect("led");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            why = follower.follow() => assert!(why.contains("does not understand the policy"), "{why}"),
            () = leading => {}
        }
        assert!(shared.config().is_none());
    });
}

#[test]
fn keys_of_requests_under_way_are_handed_over() {
    let authority = Authority::new();
    let one = with(named("one", &authority));
    let mut old = SvidStore::new(one);
    let csr = old.request("nginx.service").expect("a request");
    let two = with(named("one", &authority));
    let mut new = SvidStore::new(two.clone());
    new.restore(&Inherited::of(old.sealed_pending().expect("sealed")));
    new.set("nginx.service", vec![authority.sign(&csr, &Wrong::default())])
        .expect("its key is here");
    assert!(two.svids().by_unit("nginx.service").is_some());
}

#[test]
fn what_is_looked_up_meanwhile_is_known_to_whoever_leads() {
    run(async {
        let (world, mut generations) = World::new();
        let learned = r#"[{"unit":"a.service","name":"b.example.org","address":"198.18.0.9","life_ms":5000}]"#;
        let learned: Vec<Learned> = serde_json::from_str(learned).expect("names");
        tokio::select! {
            () = tell_learned(&world.socket, learned) => {}
            _ = generations.next() => panic!("nobody takes over or follows"),
        }
        assert_eq!(world.shared.lookups.all().len(), 1);
    });
}

#[test]
fn whoever_looks_on_sees_what_those_from_before_do() {
    run(async {
        let (mut world, mut generations) = World::new();
        let (shared, mut follower) = world.follower();
        let leading = async {
            let newcomer = newcomer(&mut generations).await;
            generations.lead(newcomer, None, Vec::new()).expect("led");
            generations.tell_tap(vec!["a.service".to_owned()]);
            until(|| shared.events.taps.include("a.service")).await;
            let seen = || Event::error("a.service", "inbound", "seen".into());
            shared.events.record(false, "a.service", seen);
            world.events.tapped.batch(9).await
        };
        tokio::select! {
            why = follower.follow() => panic!("{why}"),
            events = leading => assert_eq!(events[0].message, "seen"),
        }
    });
}
