//! Turns requests to a unit of this host into requests to its application.
//!
//! Every request is judged by the policy in force when it comes, however long its connection has been open.

use std::cell::Cell;
use std::future::pending;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::authorize::{self, Caller, Decision, Verdict};
use hostmesh_proxy_core::config::{Config, Port, Protocol, Timeouts};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{RequestEdits, RequestHead};
use hostmesh_proxy_core::retry::is_idempotent;
use hostmesh_proxy_core::trace::Span;
use tokio::time::Instant;

use super::conn::Conn;
use super::exchange::{Ended, Exchange, Tally, Upload};
use super::observe::{Account, Entry, broken, count_slow, span};
use super::session::{self, Handler, Next, asked, refuse, reply};
use crate::deliver;
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
    let mut serving = Serving {
        account: Account::new(&worker, about),
        who,
        kept: None,
        tunnel: None,
        audited: Audited::default(),
        config,
        begun: Instant::now(),
        worker: worker.clone(),
    };
    session::serve(stream, worker.shared.draining(), &mut serving).await;
}

struct Serving {
    worker: Rc<Worker>,
    config: Arc<Config>,
    account: Account,
    who: Who,
    /// The connection to the application, between requests.
    kept: Option<Conn>,
    /// The request that became a tunnel.
    tunnel: Option<Box<(RequestHead, Span)>>,
    /// Of the request that is under way.
    audited: Audited,
    /// When the last request began.
    begun: Instant,
}

impl Handler for Serving {
    fn timeouts(&self) -> Timeouts {
        self.config.timeouts
    }

    async fn request(&mut self, down: &mut Conn, request: RequestHead, last: bool) -> Next {
        let begun = Instant::now();
        self.begun = begun;
        let is_there = self.refresh();
        let About { unit, port, .. } = &self.account.about;
        let decision = if is_there {
            authorize::request(unit, &self.who.caller(), *port, &asked(&request))
        } else {
            rejudge::unknown_unit()
        };
        let span = span(&self.worker, &request, unit.trace);
        self.audited.begins(decision.verdict);
        if decision.verdict != Verdict::Allow {
            let entry = entry(&request, &decision.rule, span, begun);
            self.account.denied(&self.worker, &entry, &decision);
        }
        if let Some(fault) = decision.verdict.fault() {
            return reply(down, &request, fault, &fault.to_string(), last).await;
        }
        let Some(port) = unit.port(*port).filter(|port| port.protocol == Protocol::Http).copied() else {
            let message = format!("port {port} speaks HTTP no more");
            self.account.about.failed(&self.worker, begun, message);
            return Next::Abort;
        };
        let next = self.carry(down, &request, port, &decision, span, begun, last).await;
        if matches!(next, Next::Tunnel(_)) {
            self.tunnel = Some(Box::new((request, span)));
        }
        next
    }

    fn unreadable(&mut self, fault: Fault) {
        count_slow(&self.worker, fault);
        self.account
            .about
            .failed(&self.worker, Instant::now(), fault.to_string());
    }

    async fn denied(&self) -> Denial {
        match self.tunnel.as_deref() {
            Some((request, span)) => self.turned(request, *span).await,
            None => pending().await,
        }
    }

    fn tunnelled(&mut self, relayed: &Relayed) {
        match &relayed.denied {
            Some(denial) => denial.tell(&self.worker, self.begun, relayed.sent, relayed.received),
            None => self.account.about.relayed(&self.worker, self.begun, "", relayed),
        }
    }
}

fn entry<'a>(request: &'a RequestHead, rule: &'a str, span: Span, begun: Instant) -> Entry<'a> {
    Entry {
        request,
        rule,
        span,
        begun,
        tries: 1,
        status: 0,
        sent: 0,
        received: 0,
        error: "",
        route: "",
        flag: "",
    }
}

impl Serving {
    /// Takes the unit as it is by the config in force. `false`: it is not there any more.
    fn refresh(&mut self) -> bool {
        if !self.worker.shared.is_in_force(&self.config)
            && let Some(config) = self.worker.shared.config()
        {
            let Some(unit) = config.unit_by_name(&self.account.about.unit.unit).cloned() else {
                return false;
            };
            self.account = Account::new(
                &self.worker,
                About {
                    unit,
                    ..self.account.about.clone()
                },
            );
            self.config = config;
        }
        true
    }

    /// Waits until the policy denies this request, which it had let pass.
    async fn turned(&self, request: &RequestHead, span: Span) -> Denial {
        let about = &self.account.about;
        let asked = asked(request);
        rejudge::turned(&self.worker, self.config.policies, |config| {
            let decision = rejudge::by_unit(config, about, |unit| {
                authorize::request(unit, &self.who.caller(), about.port, &asked)
            });
            if self.audited.begins(decision.verdict) {
                let entry = entry(request, &decision.rule, span, self.begun);
                self.account.denied(&self.worker, &entry, &decision);
            }
            (!decision.verdict.passes()).then(|| Denial::new(about.clone(), decision))
        })
        .await
    }

    #[allow(clippy::too_many_arguments)] // one request's circumstances
    async fn carry(
        &mut self,
        down: &mut Conn,
        request: &RequestHead,
        port: Port,
        decision: &Decision,
        span: Span,
        begun: Instant,
        last: bool,
    ) -> Next {
        let (replayable, tally) = (Cell::new(true), Tally::default());
        let mut upload = Upload::new(request, &replayable, self.config.timeouts.stall);
        let traceparent = span.to_string();
        let edits = RequestEdits {
            traceparent: Some(&traceparent),
            peer: self.who.identity(),
        };
        let exchange = Exchange {
            request,
            edits,
            deadline: None,
            from_application: true,
            last,
            timeouts: self.config.timeouts,
            tally: &tally,
        };
        let mut entry = entry(request, &decision.rule, span, begun);
        loop {
            let used = self.kept.take().and_then(Conn::if_clean);
            let is_used = used.is_some();
            let mut up = match used {
                Some(up) => up,
                None => {
                    match deliver::connect(&self.config, &self.account.about.unit, &port, self.account.about.client)
                        .await
                    {
                        Ok(application) => Conn::new(Stream::Tcp(application)),
                        Err(error) => {
                            let message = error.to_string();
                            self.record(
                                Entry {
                                    status: 503,
                                    error: &message,
                                    flag: Fault::Connect.word(),
                                    ..entry
                                },
                                &upload,
                                &tally,
                            );
                            return reply(down, request, Fault::Connect, &Fault::Connect.to_string(), last).await;
                        }
                    }
                }
            };
            let denied = self.turned(request, span);
            match exchange.run(down, &mut up, &mut upload, |_| None, denied).await {
                // The application had closed it just now: that is nobody's failure, if nothing can happen twice.
                Ended::Failed(Fault::Reset) if is_used && replayable.get() && is_idempotent(request.method()) => {
                    continue;
                }
                Ended::Answered {
                    status,
                    upstream_clean,
                    downstream_clean,
                } => {
                    entry.status = status;
                    self.kept = Some(up).filter(|_| upstream_clean);
                    self.record(entry, &upload, &tally);
                    return if downstream_clean { Next::Keep } else { Next::Close };
                }
                Ended::Upgraded => {
                    self.record(Entry { status: 101, ..entry }, &upload, &tally);
                    return Next::Tunnel(up);
                }
                Ended::Denied { status, denial } => {
                    up.abort();
                    let (sent, received) = (tally.sent.get() + upload.length() as u64, tally.received.get());
                    entry = Entry {
                        status,
                        rule: &denial.decision.rule,
                        sent,
                        received,
                        ..entry
                    };
                    self.account.denied(&self.worker, &entry, &denial.decision);
                    return refuse(down, request, &denial.decision, status, last).await;
                }
                Ended::Broken { status, by } => {
                    let error = broken(&self.worker, by, "the application broke off its response");
                    self.record(Entry { status, error, ..entry }, &upload, &tally);
                    up.abort();
                    return Next::Abort;
                }
                Ended::Failed(fault) => {
                    up.abort();
                    count_slow(&self.worker, fault);
                    let message = fault.to_string();
                    self.record(
                        Entry {
                            status: fault.status(),
                            error: &message,
                            flag: fault.word(),
                            ..entry
                        },
                        &upload,
                        &tally,
                    );
                    return reply(down, request, fault, &message, last).await;
                }
                // Nothing here asks for another try.
                Ended::Refused(_) => return Next::Abort,
            }
        }
    }

    fn record(&self, entry: Entry<'_>, upload: &Upload<'_>, tally: &Tally) {
        let sent = tally.sent.get() + upload.length() as u64;
        self.account.ended(
            &self.worker,
            &Entry {
                sent,
                received: tally.received.get(),
                ..entry
            },
        );
    }
}
