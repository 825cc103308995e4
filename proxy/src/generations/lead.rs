//! The side of the process that leads: hears who comes by the socket, and tells those from before what is in force.

use std::cell::{Ref, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostmesh_proxy_core::snapshot::Snapshot;
use nix::unistd::getuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::channel::{Receiver, Sender, channel};
use super::handover::Successor;
use super::sums::Sums;
use super::{Generation, Message};
use crate::fdstore::Named;
use crate::shared::Shared;
use crate::told::Level;
use crate::unix_socket::{accept, listen};

/// Whoever comes says within this what for.
const GREETING: Duration = Duration::from_secs(5);

/// Who has come.
pub enum Arrival {
    /// A new process: all is to be handed over.
    Successor(Successor),
    /// One from before.
    Newcomer(Newcomer),
}

/// A process from before that wants to hear what is in force.
pub struct Newcomer {
    generation: Generation,
    sender: Sender,
    receiver: Receiver,
}

/// What a process from before is given.
enum Order {
    Say(Rc<Message>),
    Give(Vec<Named>),
}

/// All that serve on this host besides the one that leads, this one. Lives on the control thread.
pub struct Generations {
    shared: Arc<Shared>,
    listener: UnixListener,
    greeting: JoinSet<io::Result<Option<Arrival>>>,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    followers: JoinSet<()>,
    sums: Rc<RefCell<Sums>>,
}

impl Generations {
    /// From now on this process leads: whoever comes by the socket comes to it. `sums`: of those before it.
    pub fn listen(socket: &Path, shared: Arc<Shared>, sums: Sums) -> io::Result<Self> {
        Ok(Self {
            shared,
            listener: UnixListener::from_std(listen(socket)?)?,
            greeting: JoinSet::new(),
            orders: Vec::new(),
            followers: JoinSet::new(),
            sums: Rc::new(RefCell::new(sums)),
        })
    }

    /// Who comes next. May be dropped while it waits.
    pub async fn next(&mut self) -> Arrival {
        loop {
            tokio::select! {
                stream = accept(&self.listener, getuid().as_raw(), &self.shared.told) => {
                    self.greeting.spawn_local(greet(stream, self.shared.clone()));
                }
                Some(greeted) = self.greeting.join_next() => match greeted.map_err(io::Error::other).flatten() {
                    Ok(Some(arrival)) => return arrival,
                    Ok(None) => {}
                    Err(why) => {
                        self.shared.told.say(Level::Warning, format_args!("{}: {why}", super::SOCKET));
                    }
                },
            }
        }
    }

    /// Keeps a process from before at what is in force.
    pub fn lead(&mut self, newcomer: Newcomer, snapshot: Option<Snapshot>, svids: Vec<Named>) -> io::Result<()> {
        let first = snapshot.as_ref().map(said).transpose()?.map(Order::Say);
        let first = first.into_iter().chain([Order::Give(svids)]).collect();
        let (orders, queue) = mpsc::unbounded_channel();
        self.orders.push(orders);
        let following = follow(newcomer, first, queue, self.shared.clone(), self.sums.clone());
        self.followers.spawn_local(following);
        Ok(())
    }

    /// A snapshot is in force.
    pub fn tell_snapshot(&mut self, snapshot: &Snapshot) {
        if self.is_alone() {
            return;
        }
        match said(snapshot) {
            Ok(message) => self.tell(|| Order::Say(message.clone())),
            Err(why) => self.unsaid(&why),
        }
    }

    /// Somebody looks at these units.
    pub fn tell_tap(&mut self, units: Vec<String>) {
        if !self.is_alone() {
            let message = Rc::new(Message::Tap { units });
            self.tell(|| Order::Say(message.clone()));
        }
    }

    /// An SVID is in force.
    pub fn tell_svids(&mut self, sealed: impl Fn() -> io::Result<Vec<Named>>) {
        self.orders.retain(|orders| !orders.is_closed());
        for orders in &self.orders {
            match sealed() {
                // One that has gone in between needs none.
                Ok(svids) => _ = orders.send(Order::Give(svids)),
                Err(why) => self.unsaid(&why),
            }
        }
    }

    /// Tells all to finish, and returns when they have ended.
    pub async fn stop(&mut self) {
        if self.is_alone() {
            return;
        }
        let stop = Rc::new(Message::Stop);
        self.tell(|| Order::Say(stop.clone()));
        while self.followers.join_next().await.is_some() {}
    }

    /// Ends the series of what was quiet for so long.
    pub fn expire(&self, after: Duration) {
        self.sums.borrow_mut().expire(&self.shared.stats, after, Instant::now());
    }

    /// What those from before counted.
    pub fn sums(&self) -> Ref<'_, Sums> {
        self.sums.borrow()
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for orders in &self.orders {
            // One that has gone in between needs none.
            let _gone = orders.send(order());
        }
    }

    fn is_alone(&mut self) -> bool {
        self.orders.retain(|orders| !orders.is_closed());
        self.orders.is_empty()
    }

    fn unsaid(&self, why: &io::Error) {
        let what = format_args!("what is in force does not reach the processes from before a reload: {why}");
        self.shared.told.say(Level::Error, what);
    }
}

fn said(snapshot: &Snapshot) -> io::Result<Rc<Message>> {
    let snapshot = serde_json::to_value(snapshot)?;
    Ok(Rc::new(Message::Snapshot { snapshot }))
}

/// `None`: it has said all.
async fn greet(stream: UnixStream, shared: Arc<Shared>) -> io::Result<Option<Arrival>> {
    let (mut sender, mut receiver) = channel(stream);
    let arrival = match timeout(GREETING, receiver.receive()).await?? {
        Message::TakeOver => Arrival::Successor(Successor::new(sender, receiver)),
        Message::Follow(generation) => Arrival::Newcomer(Newcomer {
            generation,
            sender,
            receiver,
        }),
        Message::Learned { learned } => {
            shared.lookups.restore(learned);
            sender.send(&Message::Heard).await?;
            return Ok(None);
        }
        _ => return Err(io::Error::other("somebody came and did not say what for")),
    };
    Ok(Some(arrival))
}

/// Serves one process from before until it ends, or until this one no longer leads.
async fn follow(
    newcomer: Newcomer,
    first: Vec<Order>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
    sums: Rc<RefCell<Sums>>,
) {
    let Newcomer {
        generation,
        sender,
        mut receiver,
    } = newcomer;
    let sender = Rc::new(Mutex::new(sender));
    let say = async {
        for order in first {
            carry_out(order, &sender).await?;
        }
        while let Some(order) = orders.recv().await {
            carry_out(order, &sender).await?;
        }
        Ok::<_, io::Error>(())
    };
    let hear = async {
        loop {
            match receiver.receive().await {
                Ok(Message::Report(report)) => sums.borrow_mut().report(&generation, report),
                Ok(Message::Events { events, dropped }) => {
                    shared.events.journal.count_dropped(dropped);
                    events.into_iter().for_each(|event| shared.events.journal.push(event));
                }
                Ok(Message::Tapped { events, dropped }) => {
                    shared.events.tapped.count_dropped(dropped);
                    events.into_iter().for_each(|event| shared.events.tapped.push(event));
                }
                Ok(Message::Farewell) => {
                    sums.borrow_mut().end(&generation);
                    sender.lock().await.send(&Message::Heard).await?;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    };
    let ended = tokio::select! {
        ended = say => ended,
        ended = hear => ended,
    };
    sums.borrow_mut().lose(&generation);
    if let Err(why) = ended {
        let what = format_args!("process {} from before a reload: {why}", generation.pid);
        shared.told.say(Level::Warning, what);
    }
}

async fn carry_out(order: Order, sender: &Mutex<Sender>) -> io::Result<()> {
    let mut sender = sender.lock().await;
    match order {
        Order::Say(message) => sender.send(&message).await,
        Order::Give(svids) => sender.give(&svids).await,
    }
}
