//! Sends copies of requests to another service. Nobody waits for one: it goes out when its request is over, and what is
//! answered is thrown away.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::authorize::{self, Caller, Request};
use hostmesh_proxy_core::balance::circuit::Circuit;
use hostmesh_proxy_core::config::{Endpoint, Service};
use hostmesh_proxy_core::fields::{Changes, FieldEdits, as_sent};
use hostmesh_proxy_core::flag::Flag;
use hostmesh_proxy_core::http1::{Body, HeadScanner, RequestEdits, RequestHead, ResponseHead};
use hostmesh_proxy_core::http2::request_of;
use hostmesh_proxy_core::limit::{self, Slot};
use tokio::time::{Instant, timeout};

use super::Calling;
use crate::http::call::{Call, hash_key};
use crate::http::conn::Conn;
use crate::http::down::{Arrived, Downstream, Progress, add};
use crate::http::ext_authz::Question;
use crate::http::hop::edits_for;
use crate::http::http2;
use crate::http::observe::{Account, Entry};
use crate::http::route::{Route, To};
use crate::http::session::asked;
use crate::http::token::{self, Brought};
use crate::http::traced::Traced;
use crate::stats::Gauge;
use crate::traces::connection::Opening;

/// A mirror may take so long.
const LIMIT: Duration = Duration::from_secs(10);

/// Counts a copy while it is under way, among those of all workers to this service.
struct Pending(Arc<Circuit>);

impl Pending {
    fn begin(to: &Service, most: u32) -> Option<Self> {
        let circuit = to.circuit();
        circuit.take_copy(most).then(|| Self(circuit.clone()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.give_copy();
    }
}

impl Calling {
    /// Sends a copy of a request that is over, where its route says so.
    pub(super) fn mirror(&self, down: &impl Downstream, call: &Call<'_>) {
        if !call.taken.as_ref().is_some_and(|taken| taken.mirrored) {
            return;
        }
        let sent = self.copy(down, call).is_some();
        let gauge = if sent { Gauge::Mirrored } else { Gauge::MirrorDropped };
        self.worker.stats.add(gauge, 1);
    }

    fn copy(&self, down: &impl Downstream, call: &Call<'_>) -> Option<()> {
        let taken = call.taken.as_ref()?;
        let mirror = taken.route.mirror.as_ref()?;
        let route = call.route.called().towards(&mirror.to)?;
        let To::Service { service, port, .. } = &route.to else {
            return None;
        };
        let pending = Pending::begin(service, mirror.max_pending)?;
        let key = hash_key(Some(service), call.arrived, self.client);
        let endpoint = route.connector.pick(service, &[], key).ok()?;
        let account = self.account(&route, &endpoint.spiffe_id);
        let traced = call.traced.copy(&self.worker);
        let May {
            brought,
            slots,
            question,
        } = self.may_copy(call, &traced, &route, &endpoint, &account)?;
        let changes = taken.changes();
        let copy = Copy {
            account,
            brought,
            endpoint,
            target: port.target,
            is_http2: port.protocol.is_http2(),
            call: (traced, taken.route.name.clone()),
            route: route.clone(),
            question,
            _pending: pending,
            _slots: slots,
        };
        let written = Written::read(down.copy(&RequestEdits {
            trace: Some(copy.call.0.to_application()),
            changes: changes.as_ref(),
            ..copy.edits()
        })?)?;
        tokio::task::spawn_local(copy.run(written));
        Some(())
    }

    /// By the policies of this host: a mirror is called as any service is. `None`: it may not be.
    fn may_copy(
        &self,
        call: &Call<'_>,
        traced: &Traced,
        route: &Rc<Route>,
        endpoint: &Endpoint,
        account: &Rc<Account>,
    ) -> Option<May> {
        let entry = Entry {
            part: traced.whole(Instant::now()),
            attempt: None,
            ..call.entry(0, "")
        };
        if !route.decision.verdict.passes() {
            account.judged(&self.worker, &entry, &route.decision);
            return None;
        }
        let (Some(unit), To::Service { port, .. }) = (&endpoint.local, &route.to) else {
            return Some(May::default());
        };
        let id = route.connector.unit.spiffe_id.clone();
        let changes = call.taken.as_ref().and_then(|taken| taken.changes());
        let callee = self.account_of_callee(unit, port.target, account, &id);
        let asked = call.arrived.asked;
        let found = as_sent(asked, changes.as_ref(), |asked| token::find(unit, asked.headers));
        let brought = token::read_now(&self.worker, &callee.about, found);
        let token = brought.token();
        let decision = as_sent(Request { token, ..asked }, changes.as_ref(), |asked| {
            authorize::request(unit, &Caller::Identity(&id), port.target, asked)
        });
        callee.judged(&self.worker, &entry, &decision);
        if !decision.verdict.passes() {
            return None;
        }
        let entered = as_sent(asked, changes.as_ref(), |asked| {
            let now = || self.worker.shared.now();
            limit::take(unit, &Caller::Identity(&id), port.target, Some(asked), now)
        });
        let slots = match entered {
            Ok(slots) => slots,
            Err(over) => {
                callee.judged(&self.worker, &entry, &over);
                over.verdict.passes().then(Vec::new)?
            }
        };
        let question = as_sent(asked, changes.as_ref(), |asked| {
            let arrived = Arrived {
                asked: *asked,
                ..call.arrived
            };
            let trace = || traced.to_application();
            Question::about(&callee, Caller::Identity(&id), arrived, &brought, trace)
        });
        Some(May {
            brought,
            slots,
            question,
        })
    }
}

/// A copy may be sent.
#[derive(Default)]
struct May {
    /// The token that it is sent with.
    brought: Brought,
    /// Its places among those in flight.
    slots: Vec<Slot>,
    /// What the gatekeeper of a unit of this host is asked first.
    question: Option<Question>,
}

/// A copy as it is written in HTTP/1.1.
struct Written {
    head: RequestHead,
    body: Bytes,
    /// Both.
    whole: Bytes,
}

impl Written {
    fn read(whole: Bytes) -> Option<Self> {
        let end = HeadScanner::default().find(&whole).ok()??;
        let (head, body) = (RequestHead::parse(whole.slice(..end)).ok()?, whole.slice(end..));
        Some(Self { head, body, whole })
    }

    /// The same for who speaks HTTP/2.
    fn to_http2(&self, edits: &RequestEdits<'_>) -> Option<(http::Request<()>, Bytes)> {
        let request = request_of(&self.head, edits).ok()?;
        let (mut body, mut bytes, mut data) = (Body::new(self.head.framing), self.body.clone(), BytesMut::new());
        while let Some(more) = body.data(&mut bytes).ok()? {
            data.extend_from_slice(&more);
        }
        Some((request, data.freeze()))
    }
}

struct Copy {
    account: Rc<Account>,
    /// The token that it is sent with.
    brought: Brought,
    endpoint: Arc<Endpoint>,
    target: u16,
    is_http2: bool,
    call: (Traced, Arc<str>),
    route: Rc<Route>,
    question: Option<Question>,
    _pending: Pending,
    _slots: Vec<Slot>,
}

impl Copy {
    async fn run(mut self, written: Written) {
        let worker = self.route.connector.worker.clone();
        let (begun, progress) = (Instant::now(), Progress::default());
        add(&progress.sent, written.whole.len());
        let question = self.question.take();
        let arrived = Arrived {
            asked: asked(&written.head),
            query: written.head.query(),
            progress: &progress,
            begun,
        };
        let entry = Entry {
            endpoint: Some(&self.endpoint),
            route: &self.call.1,
            flag: Some(Flag::Mirrored),
            ..Entry::new(arrived, &self.route.decision.rule, self.call.0.whole(begun))
        };
        let edited = match question {
            None => None,
            Some(question) => match question.ask(&worker, &entry).await {
                Ok(permit) => permit.request().map(|fields| self.edited(fields, &written)),
                Err(_) => return,
            },
        };
        let sent = match &edited {
            None => &written,
            Some(Some(edited)) => edited,
            Some(None) => return self.account.copied(&worker, &entry),
        };
        let exchanged = timeout(LIMIT, self.exchange(sent, &progress)).await;
        let status = exchanged.ok().flatten().unwrap_or_default();
        self.account.copied(&worker, &Entry { status, ..entry });
    }

    /// The copy with the gatekeeper's edits. `None`: it is no request any more.
    fn edited(&self, fields: &FieldEdits, written: &Written) -> Option<Written> {
        let changes = Changes::of_fields(fields);
        let edits = RequestEdits {
            changes: Some(&changes),
            ..self.edits()
        };
        Written::read(written.head.with_body(&edits, &[&written.body]))
    }

    /// What the mesh says with it.
    fn edits(&self) -> RequestEdits<'_> {
        let unit = self.endpoint.local.as_ref();
        let edits = unit.map(|unit| edits_for(unit, &self.brought, &self.route.connector.unit));
        RequestEdits {
            alone: true,
            ..edits.unwrap_or_default()
        }
    }

    /// The status that came back; `None`: none did.
    async fn exchange(&self, sent: &Written, progress: &Progress) -> Option<u16> {
        let connector = &self.route.connector;
        let opening = Opening::default();
        let connected = connector.connect(&self.endpoint, self.target, true, &opening).await;
        let stream = connected.ok()?;
        if self.is_http2 {
            let (request, body) = sent.to_http2(&self.edits())?;
            return Box::pin(http2::ask(stream, request, body, progress)).await.ok();
        }
        let mut conn = Conn::new(stream);
        conn.send(sent.whole.clone()).await.ok()?;
        let (mut source, _sink) = conn.split();
        let limit = connector.config.timeouts.head;
        let status = loop {
            let head = source.head(limit).await.ok()?;
            add(&progress.received, head.len());
            let response = ResponseHead::parse(head, &sent.head).ok()?;
            if !response.is_interim() {
                break response.status;
            }
        };
        while let Ok(Some(bytes)) = source.recv().await {
            add(&progress.received, bytes.len());
        }
        Some(status)
    }
}
