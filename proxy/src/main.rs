//! `hostmesh-proxy`: starts the control side and the workers, tells the service manager, ends in order.
//!
//! A new process takes over what one before it has, if one is there (`generations`); after that one serves its connections
//! to their end.
//!
//! Ready means: the control socket listens, and, where a snapshot is known from before, the listeners are open. Without a
//! snapshot nothing else can be done than to wait for an agent, so that is ready too.

mod process;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io, thread};

use hostmesh_proxy::control::Control;
use hostmesh_proxy::events::{self, EventSource};
use hostmesh_proxy::fdstore::Inherited;
use hostmesh_proxy::generations::handover;
use hostmesh_proxy::generations::launch::{Launch, Launched, launch};
use hostmesh_proxy::generations::lead::Generations;
use hostmesh_proxy::generations::sums::Sums;
use hostmesh_proxy::identity::SvidStore;
use hostmesh_proxy::persist::{Persist, Saver};
use hostmesh_proxy::shared::Shared;
use hostmesh_proxy::stats::Stats;
use hostmesh_proxy::told::{self, Level};
use hostmesh_proxy::traces::{self, export::Exporter};
use hostmesh_proxy::{generations, listener, unix_socket};
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};

use process::{Process, tell};

const USAGE: &str = "usage: hostmesh-proxy [--control PATH] [--state FOLDER] [--workers N] [--helpers N] \
                     [--drain SECONDS] [--retire-after SECONDS] [--reload]";

struct Options {
    control: PathBuf,
    state: PathBuf,
    workers: usize,
    /// Threads that take a part of a worker's load, one for each worker at most.
    helpers: usize,
    drain: Duration,
    /// What is left of the connections so long after a reload is drained; none: they are served to their end.
    retire_after: Option<Duration>,
    /// Start a new main process beside the one that runs, and end when it serves (`ExecReload=`).
    reload: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            control: "/run/hostmesh-proxy/control.sock".into(),
            state: "/var/lib/hostmesh-proxy".into(),
            // Fewer workers do more at each wake-up, and leave the other half to those who call and serve
            // (docs/decisions/0006-half-the-cores.md).
            workers: cores().div_ceil(2),
            helpers: 0,
            drain: Duration::from_secs(5),
            retire_after: None,
            reload: false,
        };
        let mut helpers = None;
        while let Some(name) = arguments.next() {
            if name == "--reload" {
                options.reload = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{name}: {value:?} is not a number"))
            };
            match &*name {
                "--control" => options.control = value.into(),
                "--state" => options.state = value.into(),
                "--workers" => options.workers = number()?.clamp(1, listener::MOST_SLOTS as u64) as usize,
                "--helpers" => helpers = Some(number()?.min(listener::MOST_SLOTS as u64) as usize),
                "--drain" => options.drain = Duration::from_secs(number()?),
                "--retire-after" => options.retire_after = Some(Duration::from_secs(number()?)),
                _ => return Err(format!("{name} is not known")),
            }
        }
        let left = cores().saturating_sub(options.workers);
        options.helpers = helpers.unwrap_or(left).min(options.workers);
        Ok(options)
    }
}

/// As many as this process may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
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
    // SAFETY: no thread was started yet.
    let launched = match options.reload.then(|| unsafe { launch() }).transpose() {
        Ok(Some(Launch::Launcher(code))) => return code,
        Ok(Some(Launch::New(launched))) => Ok(Some(launched)),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    let done = launched.and_then(|launched| run(&options, inherited?, launched));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            told::write_line(Level::Error, format_args!("hostmesh-proxy ends: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, inherited: Inherited, launched: Option<Launched>) -> io::Result<()> {
    let (sink, source) = events::queue();
    let (spans, finished) = traces::queue();
    let shared = Arc::new(Shared::new(
        sink,
        spans,
        Stats::new(),
        options.workers + options.helpers,
    ));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = LocalSet::new().block_on(&runtime, async {
        let (end, ended) = oneshot::channel();
        let exporting = spawn_local(Exporter::new(shared.clone(), finished).run(ended));
        let result = begin(options, inherited, launched, shared, source).await;
        drop(end);
        exporting.await.map_err(io::Error::other)?;
        result
    });
    // A worker that hangs is not waited for: its connections are cut by the end of the process.
    runtime.shutdown_background();
    result
}

/// Takes over from the process that leads, if there is one, and leads.
async fn begin(
    options: &Options,
    inherited: Inherited,
    mut launched: Option<Launched>,
    shared: Arc<Shared>,
    source: EventSource,
) -> io::Result<()> {
    let socket = options.control.with_file_name(generations::SOCKET);
    let persist = Persist::new(&options.state);
    let mut taken = None;
    let (inherited, limit, mut sums, predecessor) = match handover::take_over(&socket).await? {
        None if launched.is_some() => {
            return Err(io::Error::other(
                "no proxy runs that could hand over: start it, or restart it",
            ));
        }
        None => (inherited, sd_notify::watchdog_enabled(), Sums::default(), None),
        Some((estate, predecessor)) => {
            let limit = sd_notify::watchdog_enabled().or(estate.watchdog);
            taken = estate.snapshot.map(|snapshot| put(&shared, snapshot)).transpose()?;
            shared.lookups.restore(estate.learned);
            (Inherited::of(estate.descriptors), limit, estate.sums, Some(predecessor))
        }
    };
    if predecessor.is_none() {
        persist.restore(&shared);
    }
    let mut svids = SvidStore::new(shared.clone());
    svids.restore(&inherited);
    if let Some(launched) = &mut launched {
        launched.become_main()?;
    }
    let mut process = Process::new(options, inherited, shared.clone(), socket.clone(), limit);
    process.start_threads()?;
    if let Some(predecessor) = predecessor {
        // Until it hears, both accept. If it does not, it goes on, and the next start of this one takes over from it.
        sums = predecessor.succeed().await?;
        let what = format_args!("took over; the process before serves its connections to their end");
        shared.told.say(Level::Notice, what);
    }
    let agent = UnixListener::from_std(unix_socket::listen(&options.control)?)?;
    let generations = Generations::listen(&socket, shared.clone(), sums)?;
    let saver = Saver::start(persist, shared.clone(), taken)?;
    let control = Control::new(shared, svids, saver, source, generations);
    tell(&[NotifyState::Ready]);
    if let Some(Err(error)) = launched.map(Launched::serves) {
        let what = format_args!("serves, and the reload, which had been given up, was not told: {error}");
        told::write_line(Level::Notice, what);
    }
    process.lead(control, agent).await
}

/// A predecessor's snapshot. It counts that it is there, so what cannot be read ends the new process, not the old one.
fn put(shared: &Shared, snapshot: serde_json::Value) -> io::Result<Snapshot> {
    let unfit = |why: &dyn std::fmt::Display| {
        io::Error::other(format!(
            "what the running proxy has in force is not for this version, restart hostmesh-proxy.service: {why}"
        ))
    };
    let snapshot: Snapshot = serde_json::from_value(snapshot).map_err(|why| unfit(&why))?;
    let config = Config::build(snapshot.clone()).map_err(|why| unfit(&why))?;
    shared.set_config(config).map_err(|why| unfit(&why))?;
    Ok(snapshot)
}
