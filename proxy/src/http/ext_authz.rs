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

use bytes::{BufMut, Bytes, BytesMut};
use hostmesh_proxy_core::authorize::{self, Caller, Decision, Request, Verdict};
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

use super::down::Downstream;
use super::observe::Entry;
use super::outbound;
use super::session::Next;
use super::token::Brought;
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
    edits: Option<Edits>,
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
    pub decision: Decision,
    /// What the client is told; of audit what it would be.
    pub fault: Fault,
    refusal: Option<Refusal>,
}

impl Refused {
    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.refusal
            .as_ref()
            .map_or(self.fault.status(), |refusal| refusal.status)
    }

    /// The request as it is told.
    pub fn entry<'a>(&'a self, entry: &Entry<'a>) -> Entry<'a> {
        Entry {
            rule: &self.decision.rule,
            status: self.status(),
            error: self.refusal.as_ref().map_or("", |refusal| &refusal.why),
            ..*entry
        }
    }

    /// Answers the client.
    pub async fn answer(&self, down: &mut impl Downstream) -> Next {
        let fault = self.fault;
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

/// What is asked about a request that the rules and limits of `about.unit` let in.
pub struct Question<'a> {
    pub config: &'a Config,
    pub about: &'a About,
    pub trace: Outgoing,
    /// Of [`message`].
    pub message: Vec<u8>,
}

/// The encoded question about a request, as the application would get it.
pub fn message(about: &About, caller: Caller<'_>, request: &Request<'_>, query: &str, brought: &Brought) -> Vec<u8> {
    check_request(&Asking {
        request: *request,
        query,
        caller,
        client: about.client,
        unit: &about.unit,
        port: about.port,
        stated: brought.headers(),
        time: SystemTime::now(),
    })
}

/// Asks the unit's gatekeeper. `tell`: audit would have refused it, and why.
pub async fn ask(
    worker: &Rc<Worker>,
    gatekeeper: &Gatekeeper,
    question: Question<'_>,
    tell: impl Fn(&Refused),
) -> Result<Permit, Refused> {
    let about = question.about;
    let asked = timeout(gatekeeper.timeout, check(worker, gatekeeper, &question)).await;
    let refusal = match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
        Ok(Answer::Pass(edits)) => {
            let (edits, flag) = (Some(edits), None);
            return Ok(Permit { edits, flag });
        }
        Ok(Answer::Refuse(refusal)) => Some(refusal),
        Err(why) => {
            tell_trouble(worker, gatekeeper, about, &*why);
            None
        }
    };
    let (verdict, fault) = match refusal {
        Some(_) => (Verdict::Refused, Fault::Refused),
        None => (Verdict::NoVerdict, Fault::NoVerdict),
    };
    let flag = refusal.is_none().then_some(Flag::NoVerdict);
    let permit = Permit { edits: None, flag };
    if refusal.is_none() && gatekeeper.may_be_silent {
        return Ok(permit);
    }
    let decision = authorize::external(&about.unit, gatekeeper, verdict);
    let passes = decision.verdict.passes();
    let refused = Refused {
        decision,
        fault,
        refusal,
    };
    if !passes {
        return Err(refused);
    }
    tell(&refused);
    Ok(permit)
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

async fn check(worker: &Rc<Worker>, gatekeeper: &Gatekeeper, question: &Question<'_>) -> Result<Answer, Trouble> {
    let message = &question.message;
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len())?);
    body.put_slice(message);
    let mut request = http::Request::post(format!("http://{}{CHECK}", gatekeeper.service))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header("grpc-timeout", format!("{}m", gatekeeper.timeout.as_millis()));
    question.trace.fields(|name, value| {
        if let Some(fields) = request.headers_mut()
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            fields.insert(name, value);
        }
    });
    let request = request.body(Full::new(body.freeze()))?;
    let mut link = link(worker, gatekeeper, &question.about.unit, question.config).await?;
    link.ready().await?;
    let (head, body) = link.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let is_over = head.headers.contains_key(STATUS);
    good(
        head.status,
        &head.headers,
        if is_over { &head.headers } else { &trailers },
    )?;
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

const STATUS: &str = "grpc-status";

/// Did it answer? Where a proxy did in its place, that says why.
fn good(status: StatusCode, fields: &HeaderMap, last: &HeaderMap) -> Result<(), Trouble> {
    let text = |fields: &HeaderMap, name| Some(fields.get(name)?.to_str().ok()?.to_owned());
    if let Some(word) = text(fields, "x-hostmesh-error") {
        return Err(word.into());
    }
    if status != StatusCode::OK {
        return Err(format!("it answers {status}: is it gRPC that is spoken there?").into());
    }
    match text(last, STATUS).as_deref() {
        Some("0") => Ok(()),
        Some(code) => Err(format!("gRPC status {code} {}", text(last, "grpc-message").unwrap_or_default()).into()),
        None => Err("its answer has no status of gRPC".into()),
    }
}

/// The way to the gatekeeper: one connection for all that the unit asks in this worker.
async fn link(
    worker: &Rc<Worker>,
    gatekeeper: &Gatekeeper,
    unit: &Arc<Unit>,
    config: &Config,
) -> Result<Link, Trouble> {
    let key = (unit.number, gatekeeper.service.clone());
    let links = &worker.gatekeepers.links;
    // Where another config has it elsewhere, the way to where it was leads to nobody.
    let called = address(config, &gatekeeper.service)?;
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

fn tell_trouble(worker: &Worker, gatekeeper: &Gatekeeper, about: &About, why: &dyn Error) {
    let now = Instant::now();
    let key = (about.unit.number, gatekeeper.service.clone());
    let mut told = worker.gatekeepers.told.borrow_mut();
    if told.get(&key).is_some_and(|told| now < *told + PACE) {
        return;
    }
    told.insert(key, now);
    let mut text = why.to_string();
    let mut cause = why.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    let (verdict, then) = match gatekeeper.may_be_silent {
        true => ("allow", "requests go on without"),
        false => ("deny", "requests are refused"),
    };
    let message = format!("{} gives no verdict, {then}: {text}", gatekeeper.service);
    let event = about.event("error", verdict, &gatekeeper.rule, message);
    worker.shared.events.emit(crate::events::Event {
        flag: Flag::NoVerdict.word(),
        ..event
    });
}
