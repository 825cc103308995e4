//! The life of the process: leads, hands over to a new one, follows it to the end of the last connection; or stops in order.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hostmesh_proxy::control::Control;
use hostmesh_proxy::fdstore::{Inherited, Named};
use hostmesh_proxy::generations::follow::Follower;
use hostmesh_proxy::generations::handover::{Estate, PATIENCE, Successor};
use hostmesh_proxy::listener;
use hostmesh_proxy::shared::Shared;
use hostmesh_proxy::told::{self, Level};
use hostmesh_proxy::{descriptors, dns, dns_socket, helper, memory, worker};
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::Options;

/// The agent is root (unix(7), SO_PEERCRED).
const AGENT_UID: u32 = 0;
/// This process, once it leads.
pub struct Process<'a> {
    options: &'a Options,
    inherited: Inherited,
    shared: Arc<Shared>,
    /// By which a new process comes.
    socket: PathBuf,
    watch: Watch,
    threads: Option<Threads>,
}

impl<'a> Process<'a> {
    /// With these sockets and keys; `limit`: of the watchdog.
    pub fn new(
        options: &'a Options,
        inherited: Inherited,
        shared: Arc<Shared>,
        socket: PathBuf,
        limit: Option<Duration>,
    ) -> Self {
        Self {
            options,
            inherited,
            shared,
            socket,
            watch: Watch::new(limit),
            threads: None,
        }
    }

    /// Opens the listeners and starts what serves them, as soon as there is a config.
    pub fn start_threads(&mut self) -> io::Result<()> {
        if self.threads.is_none() {
            self.threads = Threads::start(self.options, &self.inherited, &self.shared)?;
        }
        Ok(())
    }

    /// Leads until the service stops, or until a new process has taken over; then follows to the end.
    pub async fn lead(mut self, mut control: Control, agent: UnixListener) -> io::Result<()> {
        let mut signals = Signals::new()?;
        loop {
            let Some(mut successor) = self.lead_until_one_comes(&mut control, &agent, &mut signals).await? else {
                tell(&[NotifyState::Stopping]);
                self.shared.drain();
                let threads = self.threads.map(|threads| threads.workers).unwrap_or_default();
                let (_, finished) = tokio::join!(control.stop_followers(), finish(threads));
                return finished;
            };
            match self.hand_over(&mut control, &mut successor).await {
                Ok(()) => {
                    drop(agent);
                    self.shared.retire();
                    // It may have gone; who leads then is found by the socket.
                    let _gone = successor.retired(control.sums()).await;
                    let follower = control.retire(&self.socket);
                    return self.follow(follower, &mut signals).await;
                }
                Err(why) => {
                    self.shared.lookups.hand_over(None);
                    self.shared.told.say(
                        Level::Error,
                        format_args!("a new process came and did not take over, this one goes on: {why}"),
                    );
                }
            }
        }
    }

    /// `None`: the service stops.
    async fn lead_until_one_comes(
        &mut self,
        control: &mut Control,
        agent: &UnixListener,
        signals: &mut Signals,
    ) -> io::Result<Option<Successor>> {
        let mut changes = self.shared.changes();
        let mut serving = pin!(control.serve(agent, AGENT_UID));
        loop {
            tokio::select! {
                () = signals.end() => return Ok(None),
                successor = &mut serving => return Ok(Some(successor)),
                Ok(()) = changes.changed(), if self.threads.is_none() => self.start_threads()?,
                () = self.watch.beat(&self.shared) => {
                    if let Some(dead) = self.threads.as_ref().and_then(Threads::dead) {
                        return Err(io::Error::other(format!("{dead} ended by itself")));
                    }
                }
            }
        }
    }

    async fn hand_over(&mut self, control: &mut Control, successor: &mut Successor) -> io::Result<()> {
        let estate = timeout(PATIENCE, control.estate());
        let (snapshot, mut descriptors) = self
            .alive(estate)
            .await
            .map_err(|_| io::Error::other("the disk hangs"))??;
        for (name, fd) in self.threads.iter().flat_map(|threads| &threads.sockets) {
            descriptors.push((name.clone(), fd.try_clone()?));
        }
        // Before the names are: what is learned from here on is told.
        self.shared.lookups.hand_over(Some(&self.socket));
        let estate = Estate {
            descriptors,
            snapshot: snapshot.as_ref().map(serde_json::to_value).transpose()?,
            watchdog: self.watch.limit,
            sums: control.sums(),
            learned: self.shared.lookups.all(),
        };
        self.alive(successor.install(&estate)).await
    }

    /// Does this, and feeds the watchdog meanwhile.
    async fn alive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.watch.beat(&self.shared) => {}
            }
        }
    }

    /// Serves what is open to its end, by what the one that leads puts in force.
    async fn follow(mut self, mut follower: Follower, signals: &mut Signals) -> io::Result<()> {
        let threads = self.threads.take();
        let (workers, names) = threads.map(|threads| (threads.workers, threads.names)).unzip();
        let mut finished = pin!(finish(workers.unwrap_or_default()));
        let why = tokio::select! {
            ended = &mut finished => Ok(ended),
            why = follower.follow() => Err(why),
            () = signals.end() => Err("told to end".to_owned()),
            () = over(self.options.retire_after) => Err("the time of --retire-after is over".to_owned()),
        };
        let told = &self.shared.told;
        let ended = match why {
            Ok(ended) => {
                // Who has asked for a name before is still answered.
                let answered = tokio::task::spawn_blocking(|| names.map(JoinHandle::join)).await;
                if !matches!(answered, Ok(None | Some(Ok(Ok(()))))) {
                    told.say(
                        Level::Warning,
                        format_args!("the last names were not answered: {answered:?}"),
                    );
                }
                told.say(
                    Level::Info,
                    format_args!("the last connection from before the reload has ended"),
                );
                ended
            }
            Err(why) => {
                told.say(
                    Level::Notice,
                    format_args!("connections from before the reload end: {why}"),
                );
                self.shared.drain();
                drop(names);
                finished.await
            }
        };
        if let Err(error) = follower.say_farewell().await {
            let what = format_args!("the last counts of this process did not reach the one that leads: {error}");
            told.say(Level::Warning, what);
        }
        ended
    }
}

async fn over(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminated: Signal,
    interrupted: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns when the process is told to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
        }
    }
}

/// What serves the listeners. This thread does nothing for them but see that they live.
struct Threads {
    workers: Vec<JoinHandle<io::Result<usize>>>,
    names: JoinHandle<io::Result<()>>,
    /// What they listen on, for who takes over.
    sockets: Vec<Named>,
}

impl Threads {
    /// Opens the listeners and starts what serves them, if there is a config.
    fn start(options: &Options, inherited: &Inherited, shared: &Arc<Shared>) -> io::Result<Option<Self>> {
        let Some(config) = shared.config() else {
            return Ok(None);
        };
        let ports = &config.listeners;
        let (mut sockets, mut for_names) = (Vec::new(), Vec::new());
        for (name, socket) in dns_socket::open(&config, inherited)? {
            sockets.push((name.to_owned(), socket.try_clone()?.into()));
            for_names.push(socket);
        }
        let names = dns::start(for_names, shared.clone())?;
        let listening = listener::open(ports, options.workers, inherited)?;
        sockets.extend(listening.named);
        let start = |index, set, side| worker::start(shared.clone(), index, set, side, options.drain);
        let mut workers = Vec::new();
        for (index, set) in listening.sets.into_iter().enumerate() {
            if index < options.helpers {
                let [side, its_helper] = helper::pair();
                workers.push(start(index, set, Some(side))?);
                workers.push(start(options.workers + index, listener::Set::new(), Some(its_helper))?);
            } else {
                workers.push(start(index, set, None)?);
            }
        }
        shared.told.say(
            Level::Info,
            format_args!(
                "{} workers listen on ports {} (outbound), {} (plain text), {} (wire), {} help them",
                options.workers, ports.outbound, ports.plaintext, ports.wire, options.helpers
            ),
        );
        Ok(Some(Self {
            workers,
            names,
            sockets,
        }))
    }

    /// The name of one that has ended.
    fn dead(&self) -> Option<String> {
        let ended = |thread: &thread::Thread| thread.name().unwrap_or("a thread").to_owned();
        let mut workers = self.workers.iter();
        let worker = workers
            .find(|worker| worker.is_finished())
            .map(|dead| ended(dead.thread()));
        worker.or_else(|| self.names.is_finished().then(|| ended(self.names.thread())))
    }
}

/// Waits for the workers; each ends by itself when its time is over.
async fn finish(workers: Vec<JoinHandle<io::Result<usize>>>) -> io::Result<()> {
    let joined = tokio::task::spawn_blocking(|| workers.into_iter().map(JoinHandle::join).collect::<Vec<_>>()).await?;
    let mut cut = 0;
    for worker in joined {
        cut += worker.map_err(|_| io::Error::other("a worker panicked"))??;
    }
    if cut > 0 {
        told::write_line(
            Level::Notice,
            format_args!("{cut} connections were cut off: their time was over"),
        );
    }
    Ok(())
}

/// Tells the service manager.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        told::write_line(
            Level::Warning,
            format_args!("the service manager was not told: {error}"),
        );
    }
}

/// Feeds the service manager's watchdog (sd_watchdog_enabled(3)) as long as every worker moves.
struct Watch {
    limit: Option<Duration>,
    ticks: tokio::time::Interval,
}

impl Watch {
    fn new(limit: Option<Duration>) -> Self {
        let ticks = tokio::time::interval(limit.map_or(worker::SWEEP, |limit| limit / 3));
        Self { limit, ticks }
    }

    async fn beat(&mut self, shared: &Shared) {
        self.ticks.tick().await;
        descriptors::watch(&shared.told, io::stderr());
        memory::watch(&shared.told);
        if self.limit.is_some() && shared.all_move(worker::SWEEP * 3) {
            tell(&[NotifyState::Watchdog]);
        }
    }
}
