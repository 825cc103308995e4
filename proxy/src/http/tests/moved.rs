//! A busy worker's connections go on at its helper between two requests, and come back when there is little to do.

use std::cell::Cell;
use std::thread::JoinHandle;

use tokio::time::{Instant, sleep};

use super::*;
use crate::{helper, listener, worker};

/// A world whose worker has a helper, in a thread of its own.
struct Two {
    world: World,
    helper: JoinHandle<std::io::Result<usize>>,
    /// Requests that the application answered.
    answered: Rc<Cell<usize>>,
}

impl Two {
    async fn new() -> Self {
        let mut world = World::new(|_| ()).await;
        let [side, its_helper] = helper::pair();
        let (shared, none) = (world.shared.clone(), listener::Set::new());
        let helper = worker::start(shared.clone(), 0, none, Some(its_helper), LIMIT).expect("a thread");
        world.worker = Worker::beside(shared, 1, Some(side));
        spawn_local(world.worker.clone().tend(0));
        spawn_local(world.worker.clone().take_over());
        Self {
            world,
            helper,
            answered: Rc::default(),
        }
    }

    /// Answers whatever comes on a connection of the application's.
    async fn answer(&self) -> ! {
        loop {
            let (mut application, _) = self.world.application.accept().await.expect("a connection");
            let answered = self.answered.clone();
            spawn_local(async move {
                let mut heads = Vec::new();
                while application.read_buf(&mut heads).await.is_ok_and(|count| count > 0) {
                    while let Some(end) = heads.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                        heads.drain(..end + 4);
                        application.write_all(OK.as_bytes()).await.expect("sent");
                        answered.set(answered.get() + 1);
                    }
                }
            });
        }
    }

    fn gauge(&self, name: &str) -> i64 {
        self.world.stats().gauges[name]
    }

    /// Connections that left one of the two.
    fn moved(&self) -> i64 {
        self.gauge("moved")
    }

    /// Connections that the helper serves; those of the worker are the test's and not counted.
    fn helped(&self) -> i64 {
        self.gauge("connections") - i64::try_from(self.world.worker.open()).expect("few")
    }

    /// Does this while the application answers, then ends.
    async fn run(self, test: impl AsyncFnOnce(&Self, &mut [Peer])) {
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(Peer(self.world.client().await, Vec::new()));
        }
        tokio::select! {
            () = test(&self, &mut clients) => {}
            _ = self.answer() => {}
        }
        drop(clients);
        if !self.world.shared.is_retired() {
            self.world.shared.drain();
        } // else it ends by itself
        let ended = tokio::task::spawn_blocking(|| self.helper.join())
            .await
            .expect("joined");
        assert_eq!(ended.expect("no panic").expect("no error"), 0, "connections cut off");
    }
}

/// One after the other, on all connections, until this is so; how many in all.
async fn ask_until(clients: &mut [Peer], pause: Duration, mut is_so: impl FnMut() -> bool) -> usize {
    let end = Instant::now() + LIMIT;
    let mut asked = 0;
    while !is_so() {
        assert!(Instant::now() < end, "in time");
        for client in clients.iter_mut() {
            client.send(GET).await;
            client.until("\r\n\r\nok").await;
            asked += 1;
        }
        if pause > Duration::ZERO {
            sleep(pause).await; // the shortest one is a millisecond, in which a quick machine does all there is to do
        }
    }
    asked
}

/// The test, with a fresh world.
fn with_two(test: impl AsyncFnOnce(&Two, &mut [Peer])) {
    run(async { Two::new().await.run(test).await });
}

#[test]
fn connections_leave_a_busy_worker_and_come_back_when_it_is_quiet() {
    with_two(async |two, clients| {
        let mut asked = ask_until(clients, Duration::ZERO, || two.helped() > 1).await;
        assert!(two.helped() < 8, "all have left");
        let pace = Duration::from_millis(50);
        asked += ask_until(clients, pace, || two.helped() == 0).await;
        assert!(two.moved() >= 4 && two.moved() % 2 == 0, "{} moves", two.moved());
        assert_eq!(two.answered.get(), asked);
        let traffic = two.world.stats().traffic;
        let outbound: Vec<_> = traffic.iter().filter(|row| row.direction == "outbound").collect();
        assert_eq!(outbound.len(), 1, "two workers, one row");
        assert_eq!((outbound[0].code_class, outbound[0].count), ("2xx", asked as u64));
    });
}

#[test]
fn requests_that_were_read_already_are_answered_first() {
    with_two(async |two, clients| {
        let (mut asked, end) = (0, Instant::now() + LIMIT);
        while two.helped() < 2 {
            assert!(Instant::now() < end, "in time");
            for client in clients.iter_mut() {
                client.send(&GET.repeat(3)).await;
                asked += 3;
            }
            for client in clients.iter_mut() {
                for _ in 0..3 {
                    client.until("\r\n\r\nok").await;
                }
            }
        }
        assert_eq!(two.answered.get(), asked);
    });
}

#[test]
fn what_spoke_http_1_before_it_moved_does_so_after() {
    with_two(async |two, clients| {
        ask_until(clients, Duration::ZERO, || two.helped() > 1).await;
        for client in clients {
            client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
            let head = client.head().await;
            assert!(
                head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 5"),
                "{head}"
            );
        }
    });
}

#[test]
fn nothing_moves_once_another_process_has_taken_over() {
    run(async {
        let two = Two::new().await;
        two.world.shared.retire(); // before the worker's own tasks have begun
        two.run(async |two, clients| {
            let end = Instant::now() + Duration::from_millis(800);
            ask_until(clients, Duration::ZERO, || Instant::now() > end).await;
            assert_eq!((two.moved(), two.helped()), (0, 0));
        })
        .await;
    });
}

#[test]
fn what_is_on_its_way_when_another_process_takes_over_arrives() {
    with_two(async |two, clients| {
        let asked = ask_until(clients, Duration::ZERO, || two.moved() > 0).await;
        two.world.shared.retire();
        let more = ask_until(clients, Duration::ZERO, || two.answered.get() >= asked + 80).await;
        assert_eq!(two.answered.get(), asked + more);
        assert_eq!(two.helped(), two.moved());
    });
}
