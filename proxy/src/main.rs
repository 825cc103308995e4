//! `hostmesh-proxy`: starts the control side and the workers, tells the service manager, ends in order.
//!
//! Ready means: the control socket listens, and, where a snapshot is known from before, the listeners are open. Without a
//! snapshot nothing else can be done than to wait for an agent, so that is ready too.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, io};

use hostmesh_proxy::control::{self, Control};
use hostmesh_proxy::events::{self, EventSource};
use hostmesh_proxy::fdstore::Inherited;
use hostmesh_proxy::identity::SvidStore;
use hostmesh_proxy::listener;
use hostmesh_proxy::persist::{Persist, Saver};
use hostmesh_proxy::shared::Shared;
use hostmesh_proxy::stats::Stats;
use hostmesh_proxy::told::{self, Level};
use hostmesh_proxy::{descriptors, dns, dns_socket, worker};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

const USAGE: &str = "usage: hostmesh-proxy [--control PATH] [--state FOLDER] [--workers N] [--drain SECONDS]";

/// The agent is root (unix(7), SO_PEERCRED).
const AGENT_UID: u32 = 0;

struct Options {
    control: PathBuf,
    state: PathBuf,
    workers: usize,
    drain: Duration,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            control: "/run/hostmesh-proxy/control.sock".into(),
            state: "/var/lib/hostmesh-proxy".into(),
            workers: half_of_the_cores(),
            drain: Duration::from_secs(5),
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{name}: {value:?} is not a number"))
            };
            match &*name {
                "--control" => options.control = value.into(),
                "--state" => options.state = value.into(),
                "--workers" => options.workers = number()?.clamp(1, 1024) as usize,
                "--drain" => options.drain = Duration::from_secs(number()?),
                _ => return Err(format!("{name} is not known")),
            }
        }
        Ok(options)
    }
}

/// Fewer workers do more at each wake-up, and leave the other half to those who call and serve
/// (docs/decisions/0006-half-the-cores.md).
fn half_of_the_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from).div_ceil(2)
}

fn main() -> ExitCode {
    // SAFETY: nothing in this process has opened a descriptor yet.
    let inherited = unsafe { Inherited::from_environment() };
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            told::write_line(Level::Error, format_args!("{error}; {USAGE}"));
            return ExitCode::from(2);
        }
    };
    match inherited.and_then(|inherited| run(options, &inherited)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            told::write_line(Level::Error, format_args!("hostmesh-proxy ends: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options, inherited: &Inherited) -> io::Result<()> {
    let (sink, source) = events::queue();
    let shared = Arc::new(Shared::new(sink, Stats::new(), options.workers));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = LocalSet::new().block_on(&runtime, serve(&options, inherited, shared, source));
    // A worker that hangs is not waited for: its connections are cut by the end of the process.
    runtime.shutdown_background();
    result
}

async fn serve(options: &Options, inherited: &Inherited, shared: Arc<Shared>, source: EventSource) -> io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let persist = Persist::new(&options.state);
    let known = persist.restore(&shared);
    let mut svids = SvidStore::new(shared.clone());
    svids.restore(inherited);
    let socket = control::listen(&options.control)?;
    let control = Control::new(shared.clone(), svids, Saver::start(persist, shared.clone())?, source);
    let mut control = tokio::task::spawn_local(control.serve(socket, AGENT_UID));
    let mut changes = shared.changes();
    let mut threads = match known {
        true => Threads::start(options, inherited, &shared)?,
        false => None,
    };
    tell(&[NotifyState::Ready]);
    let mut watch = Watch::new(shared.clone());
    loop {
        tokio::select! {
            Some(()) = terminated.recv() => break,
            Some(()) = interrupted.recv() => break,
            ended = &mut control => return ended?,
            Ok(()) = changes.changed(), if threads.is_none() => threads = Threads::start(options, inherited, &shared)?,
            () = watch.beat() => {
                if let Some(dead) = threads.as_ref().and_then(Threads::dead) {
                    return Err(io::Error::other(format!("{dead} ended by itself")));
                }
            }
        }
    }
    tell(&[NotifyState::Stopping]);
    shared.drain();
    // Names are answered to the end of the process: what drains may ask for some.
    finish(threads.map(|threads| threads.workers).unwrap_or_default()).await
}

/// What serves the listeners. This thread does nothing for them but see that they live.
struct Threads {
    workers: Vec<JoinHandle<io::Result<usize>>>,
    names: JoinHandle<io::Result<()>>,
}

impl Threads {
    /// Opens the listeners and starts what serves them, if there is a config.
    fn start(options: &Options, inherited: &Inherited, shared: &Arc<Shared>) -> io::Result<Option<Self>> {
        let Some(config) = shared.config() else {
            return Ok(None);
        };
        let ports = &config.listeners;
        let names = dns::start(dns_socket::open(&config, inherited)?, shared.clone())?;
        let sets = listener::open(ports, options.workers, inherited)?;
        let started = sets.into_iter().enumerate();
        let workers = started
            .map(|(index, set)| worker::start(shared.clone(), index, set, options.drain))
            .collect::<Result<_, _>>()?;
        shared.told.say(
            Level::Info,
            format_args!(
                "{} workers listen on ports {} (outbound), {} (plain text), {} (wire)",
                options.workers, ports.outbound, ports.plaintext, ports.wire
            ),
        );
        Ok(Some(Self { workers, names }))
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

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        told::write_line(
            Level::Warning,
            format_args!("the service manager was not told: {error}"),
        );
    }
}

/// Feeds the service manager's watchdog (sd_watchdog_enabled(3)) as long as every worker moves.
struct Watch {
    shared: Arc<Shared>,
    wanted: bool,
    ticks: tokio::time::Interval,
}

impl Watch {
    fn new(shared: Arc<Shared>) -> Self {
        let limit = sd_notify::watchdog_enabled();
        let ticks = tokio::time::interval(limit.map_or(worker::SWEEP, |limit| limit / 3));
        Self {
            shared,
            wanted: limit.is_some(),
            ticks,
        }
    }

    async fn beat(&mut self) {
        self.ticks.tick().await;
        descriptors::watch(&self.shared.told, io::stderr());
        if self.wanted && self.shared.all_move(worker::SWEEP * 3) {
            tell(&[NotifyState::Watchdog]);
        }
    }
}
