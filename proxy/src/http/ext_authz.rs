//! Asks a unit's gatekeeper about a request that the rules let in: external authorization.
//!
//! The gatekeeper is a service of the mesh, called as the unit itself would call it: what is said in this process is a
//! connection of HTTP/2 to [`outbound`], so that both sides' policies, routes, retries, records and traces are those of any
//! call. Nothing of this is there for units without a gatekeeper.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hostmesh_proxy_core::authorize::{self, Caller, Decision, Verdict};
use hostmesh_proxy_core::config::{Config, Gatekeeper, Protocol, Unit};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::ext_authz::{Answer, Asking, CHECK, Edits, Refusal, answer, check_request};
use hostmesh_proxy_core::fields::FieldEdits;
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::trace::Outgoing;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::duplex;
use tokio::time::{Instant, timeout};

use super::down::{Arrived, Downstream};
use super::observe::{Account, Entry};
use super::outbound;
use super::session::Next;
use super::token::Brought;
use crate::events::Event;
use crate::grpc;
use crate::worker::{About, Worker};

/// On its way between the two ends in this process at most, bytes.
const BUFFER: usize = 64 * 1024;
/// No answer is longer.
const ANSWER: usize = 256 * 1024;
/// That a gatekeeper gives no verdict is told so often, by each worker.
const PACE: Duration = Duration::from_secs(1);

/// It goes on.
#[derive(Default)]
pub struct Permit {
    edits: Option<Box<Edits>>,
    /// Where it goes on without a verdict.
    pub flag: Option<Flag>,
}

impl Permit {
    /// What is done to the request's fields.
    pub fn request(&self) -> Option<&FieldEdits> {
        Some(&self.edits.as_ref()?.request).filter(|fields| !fields.is_empty())
    }

    /// What is done to the response's.
    pub fn response(&self) -> Option<&FieldEdits> {
        Some(&self.edits.as_ref()?.response).filter(|fields| !fields.is_empty())
    }
}

/// It does not.
pub struct Refused {
    decision: Decision,
    /// What it says; `None`: nothing.
    refusal: Option<Refusal>,
}

impl Refused {
    /// What the client is told; of audit what it would be.
    pub fn fault(&self) -> Fault {
        match self.refusal {
            Some(_) => Fault::Refused,
            None => Fault::NoVerdict,
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        let by_fault = || self.fault().status();
        self.refusal.as_ref().map_or_else(by_fault, |refusal| refusal.status)
    }

    /// Tells it, and counts it where it holds.
    fn tell(&self, worker: &Worker, account: &Account, entry: &Entry<'_>) {
        let entry = Entry {
            rule: &self.decision.rule,
            status: self.status(),
            error: self.refusal.as_ref().map_or("", |refusal| &refusal.why),
            ..*entry
        };
        account.judged(worker, &entry, &self.decision);
    }

    /// Answers the client.
    pub async fn answer(&self, down: &mut impl Downstream) -> Next {
        let fault = self.fault();
        let Some(Refusal {
            status, fields, body, ..
        }) = &self.refusal
        else {
            return down.reply(fault, &fault.to_string()).await;
        };
        let fields = fields.iter().map(|(name, value)| (&**name, &**value));
        let fields: Vec<_> = fields.chain([("x-hostmesh-error", fault.word())]).collect();
        down.answer(*status, &fields, body).await
    }
}

/// What is asked about a request that the rules and limits of a unit let in.
pub struct Question {
    account: Rc<Account>,
    gatekeeper: Arc<Gatekeeper>,
    trace: Outgoing,
    message: Vec<u8>,
}

impl Question {
    /// About a request as the application would get it; `None`: the unit has no gatekeeper.
    pub fn about(
        account: &Rc<Account>,
        caller: Caller<'_>,
        arrived: Arrived<'_>,
        brought: &Brought,
        trace: impl FnOnce() -> Outgoing,
    ) -> Option<Self> {
        let About { unit, client, port, .. } = &account.about;
        let gatekeeper = unit.gatekeeper.clone()?;
        Some(Self {
            account: account.clone(),
            gatekeeper,
            trace: trace(),
            message: check_request(&Asking {
                request: arrived.asked,
                query: arrived.query,
                caller,
                client: *client,
                unit,
                port: *port,
                stated: brought.headers(),
                time: SystemTime::now(),
            }),
        })
    }

    /// Asks the unit's gatekeeper. What it refuses, or would but for audit, is told of `entry`.
    pub async fn ask(self, worker: &Rc<Worker>, entry: &Entry<'_>) -> Result<Permit, Refused> {
        let Self {
            account, gatekeeper, ..
        } = &self;
        let asked = timeout(gatekeeper.timeout, self.check(worker)).await;
        let refusal = match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(Answer::Pass(edits)) => {
                let (edits, flag) = (Some(Box::new(edits)), None);
                return Ok(Permit { edits, flag });
            }
            Ok(Answer::Refuse(refusal)) => Some(refusal),
            Err(why) => {
                self.tell_trouble(worker, &*why);
                None
            }
        };
        let (verdict, flag) = match refusal {
            Some(_) => (Verdict::Refused, None),
            None => (Verdict::NoVerdict, Some(Flag::NoVerdict)),
        };
        let permit = Permit { edits: None, flag };
        if refusal.is_none() && gatekeeper.may_be_silent {
            return Ok(permit);
        }
        let decision = authorize::external(&account.about.unit, gatekeeper, verdict);
        let refused = Refused { decision, refusal };
        refused.tell(worker, account, entry);
        match refused.decision.verdict.passes() {
            true => Ok(permit),
            false => Err(refused),
        }
    }

    async fn check(&self, worker: &Rc<Worker>) -> Result<Answer, Trouble> {
        let Self {
            account,
            gatekeeper,
            trace,
            message,
        } = self;
        let mut request = http::Request::post(format!("http://{}{CHECK}", gatekeeper.service))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header("grpc-timeout", format!("{}m", gatekeeper.timeout.as_millis()));
        trace.fields(|name, value| {
            if let Some(fields) = request.headers_mut()
                && let Ok(value) = HeaderValue::from_bytes(value)
            {
                fields.insert(name, value);
            }
        });
        let request = request.body(Full::new(grpc::framed(message)?))?;
        let mut link = link(worker, gatekeeper, &account.about.unit).await?;
        link.ready().await?;
        let (head, body) = link.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER).collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        good(head.status, &head.headers, &trailers)?;
        let body = body.to_bytes();
        let length = body
            .get(1..5)
            .and_then(|length| length.try_into().ok())
            .map(u32::from_be_bytes);
        match body.get(5..) {
            Some(message) if body[0] == 0 && length.map(|length| length as usize) == Some(message.len()) => {
                Ok(answer(message)?)
            }
            _ => Err("its answer is no single message of gRPC".into()),
        }
    }

    fn tell_trouble(&self, worker: &Worker, why: &dyn Error) {
        let (about, gatekeeper) = (&self.account.about, &self.gatekeeper);
        let now = Instant::now();
        let key = (about.unit.number, gatekeeper.service.clone());
        let mut told = worker.gatekeepers.told.borrow_mut();
        if told.get(&key).is_some_and(|told| now < *told + PACE) {
            return;
        }
        told.insert(key, now);
        let (verdict, then) = match gatekeeper.may_be_silent {
            true => ("allow", "requests go on without"),
            false => ("deny", "requests are refused"),
        };
        let message = format!("{} gives no verdict, {then}: {}", gatekeeper.service, grpc::causes(why));
        let event = about.event("error", verdict, &gatekeeper.rule, message);
        worker.shared.events.emit(Event {
            flag: Flag::NoVerdict.word(),
            ..event
        });
    }
}

/// Whom, for whom: the unit's number and its gatekeeper's service.
type Key = (u32, Arc<str>);

type Link = SendRequest<Full<Bytes>>;

/// What a worker knows of gatekeepers.
#[derive(Default)]
pub struct Gatekeepers {
    links: RefCell<HashMap<Key, (SocketAddr, Link)>>,
    /// When it was told last that one gives no verdict.
    told: RefCell<HashMap<Key, Instant>>,
}

type Trouble = Box<dyn Error + Send + Sync>;

/// Did it answer? Where a proxy did in its place, that says why.
fn good(status: StatusCode, head: &HeaderMap, trailers: &HeaderMap) -> Result<(), Trouble> {
    if let Some(word) = head.get("x-hostmesh-error") {
        return Err(String::from_utf8_lossy(word.as_bytes()).into());
    }
    if status != StatusCode::OK {
        return Err(format!("it answers {status}: is it gRPC that is spoken there?").into());
    }
    match grpc::status(head, trailers) {
        (Some(0), _) => Ok(()),
        (Some(code), said) => Err(format!("gRPC status {code} {said}").into()),
        (None, _) => Err("its answer has no status of gRPC".into()),
    }
}

/// The way to the gatekeeper: one connection for all that the unit asks in this worker.
async fn link(worker: &Rc<Worker>, gatekeeper: &Gatekeeper, unit: &Arc<Unit>) -> Result<Link, Trouble> {
    let config = worker.shared.config().ok_or("nothing is in force")?;
    let key = (unit.number, gatekeeper.service.clone());
    let links = &worker.gatekeepers.links;
    // Where another config has it elsewhere, the way to where it was leads to nobody.
    let called = address(&config, &gatekeeper.service)?;
    let is_there = |(to, link): &&(SocketAddr, SendRequest<_>)| *to == called && !link.is_closed();
    if let Some((_, link)) = links.borrow().get(&key).filter(is_there) {
        return Ok(link.clone());
    }
    let (ours, its) = duplex(BUFFER);
    let client = config.addresses.first().copied().unwrap_or(called.ip());
    tokio::task::spawn_local(outbound::serve_own(worker.clone(), unit.clone(), called, client, its));
    let (link, connection) = handshake(TokioExecutor::new(), TokioIo::new(ours)).await?;
    // How it ends is told by its requests.
    tokio::spawn(connection);
    links.borrow_mut().insert(key, (called, link.clone()));
    Ok(link)
}

/// Where the unit calls the service that speaks gRPC.
fn address(config: &Config, name: &str) -> Result<SocketAddr, Trouble> {
    let service = config.service_by_name(name).ok_or("there is no such service")?;
    let speaks = |protocol| service.ports.iter().find(move |port| port.protocol == protocol);
    let port = speaks(Protocol::Grpc).or_else(|| speaks(Protocol::Http2));
    let port = port
        .or_else(|| speaks(Protocol::Auto))
        .ok_or("it has no port that speaks grpc")?;
    let vip = service.vips.first().ok_or("it has no address")?;
    Ok(SocketAddr::new(*vip, port.port))
}
