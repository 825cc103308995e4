//! Turns requests to a unit of this host into requests to its application.
//!
//! Every request is judged by the policy in force when it comes, however long its connection has been open.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::{self, Caller, Request, Token};
use hostmesh_proxy_core::config::{Config, Port, Protocol, Timeouts};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::fields::Changes;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::http1::RequestEdits;
use hostmesh_proxy_core::limit::{self, Slot};
use hostmesh_proxy_core::retry::is_idempotent;
use hostmesh_proxy_core::trace::Outgoing;
use tokio::sync::watch;
use tokio::time::Instant;

use super::conn::Conn;
use super::down::{Arrived, Downstream, Ended, Manner, Stretch, Up};
use super::ext_authz::{Permit, Question};
use super::http2::Links;
use super::observe::{Account, Entry, broken, count_slow};
use super::session::{self, Handler, Next};
use super::token::{self, Brought};
use super::traced::{Part, Traced};
use crate::deliver;
use crate::overload;
use crate::rejudge::{self, Audited, Denial};
use crate::stream::Stream;
use crate::tcp::Relayed;
use crate::worker::{About, Worker};

/// Who calls.
#[derive(Debug, Clone)]
pub enum Who {
    /// An identity that was attested.
    Identity(Arc<str>),
    /// Plain text; `local`: from a process of this host.
    Plaintext {
        /// Its address.
        address: IpAddr,
        /// Is it this host's?
        local: bool,
    },
}

impl Who {
    /// As policy is asked about it.
    pub fn caller(&self) -> Caller<'_> {
        match self {
            Self::Identity(id) => Caller::Identity(id),
            Self::Plaintext { address, local } => Caller::Plaintext {
                address: *address,
                local: *local,
            },
        }
    }

    fn identity(&self) -> Option<&str> {
        match self {
            Self::Identity(id) => Some(id),
            Self::Plaintext { .. } => None,
        }
    }
}

/// Serves a connection to an HTTP port of a unit of this host: `about.unit`, `about.port`, by the config in which the
/// caller has found them. Nothing of it was judged yet that a request could change.
pub async fn serve(worker: Rc<Worker>, config: Arc<Config>, about: About, who: Who, stream: Stream) {
    serve_told(worker, config, about, who, Conn::new(stream), Told::default()).await;
}

/// What a connection has told, where its port does not say what is spoken there.
#[derive(Default)]
pub struct Told {
    /// What is spoken; `None`: what the port says.
    pub protocol: Option<Protocol>,
    /// A connection to the application that is there already.
    pub application: Option<Conn>,
}

/// The same, when the client's first bytes have told what it speaks.
pub async fn serve_told(worker: Rc<Worker>, config: Arc<Config>, about: About, who: Who, client: Conn, told: Told) {
    let account = Rc::new(Account::new(&worker, about));
    let draining = worker.shared.draining();
    let serving = Serving {
        worker,
        who,
        served: RefCell::new(Rc::new(Served { config, account })),
        told: told.protocol,
        kept: RefCell::new(told.application.into_iter().collect()),
        links: Links::default(),
        tunnel: RefCell::default(),
    };
    session::serve(client, draining, Rc::new(serving), false).await;
}

/// A connection to a unit, and what its requests share.
struct Serving {
    worker: Rc<Worker>,
    who: Who,
    served: RefCell<Rc<Served>>,
    /// What the client has told that it speaks.
    told: Option<Protocol>,
    /// Connections to the application, between requests.
    kept: RefCell<Vec<Conn>>,
    /// The same where HTTP/2 is spoken, by port.
    links: Links<u16>,
    /// The request that became a tunnel.
    tunnel: RefCell<Option<Rc<LetIn>>>,
}

/// By what a request was let in, and its places among those in flight.
type LetIn = (Rc<Served>, Traced, Brought, Vec<Slot>);

/// The unit as it is by one config.
struct Served {
    config: Arc<Config>,
    account: Rc<Account>,
}

impl Handler for Serving {
    fn timeouts(&self) -> Timeouts {
        self.served.borrow().config.timeouts
    }

    fn retired(&self) -> watch::Receiver<bool> {
        self.worker.shared.retired()
    }

    fn keep(&self, client: Conn, now: Instant) -> Option<Conn> {
        self.worker.side.iter().for_each(|side| side.look(now));
        Some(client)
    }

    async fn request(&self, down: &mut impl Downstream, arrived: Arrived<'_>) -> Next {
        let is_there = self.refresh();
        let served = self.served.borrow().clone();
        let _admitted = match overload::admit(&self.worker, &served.config) {
            Ok(admitted) => admitted,
            Err(fault) => return self.shed(down, &served, arrived, fault).await,
        };
        let About { unit, port, .. } = &served.account.about;
        let judge = |token: Token<'_>| {
            let asked = Request { token, ..arrived.asked };
            authorize::request(unit, &self.who.caller(), *port, &asked)
        };
        let found = token::find(unit, arrived.asked.headers);
        let brought = token::read(&self.worker, &served.account.about, found, |token| {
            !judge(token).verdict.passes()
        });
        let brought = brought.await;
        let decision = if is_there {
            judge(brought.token())
        } else {
            rejudge::unknown_unit()
        };
        let arrived = arrived.with(&brought);
        let audited = Audited::default();
        audited.begins(&decision);
        let traced = Traced::begin(&self.worker, &served.config, unit, arrived.asked.headers);
        let entry = Entry::new(arrived, &decision.rule, traced.whole(arrived.begun));
        served.account.judged(&self.worker, &entry, &decision);
        if let Some(fault) = decision.verdict.fault() {
            return down.reply(fault, &fault.to_string()).await;
        }
        let now = || self.worker.shared.now();
        let slots = match limit::take(unit, &self.who.caller(), *port, Some(&arrived.asked), now) {
            Ok(slots) => slots,
            Err(over) => {
                let rule = &over.rule;
                served.account.judged(&self.worker, &Entry { rule, ..entry }, &over);
                if let Some(fault) = over.verdict.fault() {
                    return down.reply(fault, &fault.to_string()).await;
                }
                Vec::new()
            }
        };
        let declared = unit.port(*port).map(|declared| declared.told(self.told));
        let Some(port) = declared.filter(|port| port.protocol.is_read()) else {
            let message = format!("port {port} speaks HTTP no more");
            served.account.about.failed(&self.worker, arrived.begun, None, message);
            return Next::Abort;
        };
        let trace = traced.to_application();
        let question = Question::about(&served.account, self.who.caller(), arrived, &brought, || trace);
        let permit = match question {
            None => Permit::default(),
            // Boxed: few units have a gatekeeper.
            Some(question) => match Box::pin(question.ask(&self.worker, &entry)).await {
                Ok(permit) => permit,
                Err(refused) => return refused.answer(down).await,
            },
        };
        let next = self
            .carry(down, &served, port, entry, (trace, &brought, &permit), &audited)
            .await;
        if matches!(next, Next::Tunnel(_)) {
            self.tunnel
                .replace(Some(Rc::new((served.clone(), traced, brought.clone(), slots))));
        }
        next
    }

    fn unreadable(&self, fault: Fault) {
        count_slow(&self.worker, fault);
        let about = &self.served.borrow().account.about;
        about.failed(&self.worker, Instant::now(), Some(fault.flag()), fault.to_string());
    }

    async fn denied(&self, arrived: Arrived<'_>) -> Denial {
        let tunnel = self.tunnel.borrow().clone();
        match tunnel {
            Some(tunnel) => {
                let (served, traced, brought, _) = &*tunnel;
                let arrived = arrived.with(brought);
                let part = traced.whole(arrived.begun);
                self.turned(served, arrived, part, &Audited::default()).await
            }
            None => pending().await,
        }
    }

    fn tunnelled(&self, begun: Instant, relayed: &Relayed) {
        match &relayed.denied {
            Some(denial) => denial.tell(&self.worker, begun, relayed.sent, relayed.received),
            None => self
                .served
                .borrow()
                .account
                .about
                .relayed(&self.worker, begun, "", relayed),
        }
    }
}

impl Serving {
    /// Takes the unit as it is by the config in force. `false`: it is not there any more.
    fn refresh(&self) -> bool {
        let mut served = self.served.borrow_mut();
        if !self.worker.shared.is_in_force(&served.config)
            && let Some(config) = self.worker.shared.config()
        {
            let about = served.account.about.clone();
            let Some(unit) = config.unit_by_name(&about.unit.unit).cloned() else {
                return false;
            };
            let account = Rc::new(Account::new(&self.worker, About { unit, ..about }));
            *served = Rc::new(Served { config, account });
        }
        true
    }

    /// Waits until the policy denies this request, which it had let pass.
    async fn turned(&self, served: &Served, arrived: Arrived<'_>, part: Part<'_>, audited: &Audited) -> Denial {
        let about = &served.account.about;
        rejudge::turned(&self.worker, served.config.policies, |config| {
            let decision = rejudge::by_unit(config, about, |unit| {
                authorize::request(unit, &self.who.caller(), about.port, &arrived.asked)
            });
            if audited.begins(&decision) {
                let entry = Entry::new(arrived, &decision.rule, part);
                served.account.judged(&self.worker, &entry, &decision);
            }
            (!decision.verdict.passes()).then(|| Denial::new(about.clone(), decision))
        })
        .await
    }

    /// Refuses a request unjudged: there is too much to do.
    async fn shed(&self, down: &mut impl Downstream, served: &Served, arrived: Arrived<'_>, fault: Fault) -> Next {
        let unit = &served.account.about.unit;
        let traced = Traced::begin(&self.worker, &served.config, unit, arrived.asked.headers);
        let message = fault.to_string();
        let entry = Entry {
            tries: 0,
            status: fault.status(),
            error: &message,
            flag: Some(fault.flag()),
            ..Entry::new(arrived, "", traced.whole(arrived.begun))
        };
        served.account.ended(&self.worker, &entry);
        down.reply(fault, &message).await
    }

    async fn carry(
        &self,
        down: &mut impl Downstream,
        served: &Served,
        port: Port,
        entry: Entry<'_>,
        (trace, brought, permit): (Outgoing, &Brought, &Permit),
        audited: &Audited,
    ) -> Next {
        let arrived = entry.arrived;
        let changes = permit.request().map(Changes::of_fields);
        let manner = Manner {
            edits: RequestEdits {
                trace: Some(trace),
                peer: self.who.identity(),
                withheld: served.account.about.unit.withheld(),
                stated: brought.headers(),
                changes: changes.as_ref(),
                ..RequestEdits::default()
            },
            response: permit.response(),
            deadline: None,
            from_application: true,
            timeouts: served.config.timeouts,
            stretch: Stretch::Whole,
        };
        let record = |status: u16, error: &str, flag: Option<Flag>| {
            let entry = Entry {
                status,
                error,
                flag: flag.or(permit.flag),
                ..entry
            };
            served.account.ended(&self.worker, &entry);
        };
        let mut fresh = false;
        loop {
            let (mut up, is_used) = match self.connect(served, &port, fresh).await {
                Ok(connected) => connected,
                Err(error) => {
                    record(503, &error.to_string(), Some(Flag::ConnectFailure));
                    return down.reply(Fault::Connect, &Fault::Connect.to_string()).await;
                }
            };
            let denied = pin!(self.turned(served, arrived, entry.part, audited));
            match down.exchange(&mut up, &manner, |_| None, denied).await {
                // The application had closed it just now: that is nobody's failure, if nothing can happen twice.
                Ended::Failed(Fault::Reset)
                    if is_used && arrived.progress.is_replayable.get() && is_idempotent(arrived.asked.method) =>
                {
                    fresh = true;
                }
                Ended::Unseen if is_used && arrived.progress.is_replayable.get() => fresh = true,
                Ended::Unseen => {
                    let fault = Fault::Connect;
                    record(
                        fault.status(),
                        "the application took no request on its connection",
                        Some(fault.flag()),
                    );
                    return down.reply(fault, &fault.to_string()).await;
                }
                Ended::Answered {
                    status,
                    upstream_clean,
                    downstream_clean,
                } => {
                    if let (true, Up::Http1(up)) = (upstream_clean, up) {
                        self.kept.borrow_mut().push(up);
                    }
                    record(status, "", None);
                    return if downstream_clean { Next::Keep } else { Next::Close };
                }
                Ended::Upgraded => {
                    record(101, "", None);
                    return up.into_tunnel();
                }
                Ended::Denied { status, denial } => {
                    up.abort();
                    let rule = &denial.decision.rule;
                    let entry = Entry { status, rule, ..entry };
                    served.account.judged(&self.worker, &entry, &denial.decision);
                    return down.refuse(&denial.decision, status).await;
                }
                Ended::Broken { status, by } => {
                    record(
                        status,
                        broken(&self.worker, by, "the application broke off its response"),
                        None,
                    );
                    up.abort();
                    return Next::Abort;
                }
                Ended::Failed(fault) => {
                    up.abort();
                    count_slow(&self.worker, fault);
                    let message = fault.to_string();
                    record(fault.status(), &message, Some(fault.flag()));
                    return down.reply(fault, &message).await;
                }
                // Nothing here asks for another try, nor for half of one.
                Ended::Refused(_) | Ended::Waiting => return Next::Abort,
            }
        }
    }

    /// A connection to the application, and whether it has served other requests.
    async fn connect(&self, served: &Served, port: &Port, fresh: bool) -> io::Result<(Up, bool)> {
        let About { unit, client, .. } = &served.account.about;
        let deliver = async {
            deliver::connect(&served.config, unit, port, *client)
                .await
                .map(Stream::Tcp)
        };
        if port.protocol.is_http2() {
            let (link, is_used) = self.links.get(port.port, fresh, deliver).await?;
            return Ok((Up::Http2(link), is_used));
        }
        let used = self.kept.borrow_mut().pop().and_then(Conn::if_clean).filter(|_| !fresh);
        match used {
            Some(conn) => Ok((Up::Http1(conn), true)),
            None => Ok((Up::Http1(Conn::new(Box::pin(deliver).await?)), false)),
        }
    }
}
