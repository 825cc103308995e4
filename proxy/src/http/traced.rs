//! A request's spans: its own on this hop, those of its tries, that of the unit of this host that is called.
//!
//! Their ids go out with every request. Recorded they are where a collector is configured and the trace is sampled; or, by
//! `trace = { errors = true }`, where the request failed: then only by who saw it fail. What is not recorded allocates
//! nothing.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

use hostmesh_proxy_core::authorize::Headers;
use hostmesh_proxy_core::config::{Config, Unit};
use hostmesh_proxy_core::trace::{Formats, Incoming, Outgoing, Span};
use tokio::time::Instant;

use super::observe::Entry;
use crate::traces::connection::Steps;
use crate::traces::{Finished, Kind, Value, since_epoch};
use crate::worker::{About, Worker};

/// As much of a path is recorded.
const LONGEST_PATH: usize = 1024;

/// Which of a request's spans are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Nothing,
    Failures,
    All,
}

/// A request's place in its trace, as long as it is under way.
pub struct Traced {
    incoming: Incoming,
    parent: Option<u64>,
    formats: Formats,
    /// Of the request on this hop.
    pub span: Span,
    keeps: Cell<Keeps>,
    /// Spans below it that are recorded if it fails.
    waiting: RefCell<Vec<Finished>>,
}

/// One span of a request.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    traced: &'a Traced,
    pub span: Span,
    parent: Option<u64>,
    begun: Instant,
    /// Of the request as a whole on this hop.
    is_whole: bool,
}

/// One try.
#[derive(Clone, Copy)]
pub struct Attempt {
    span: Span,
    begun: Instant,
    /// Of the called unit, where it is one of this host.
    callee: Span,
}

impl Traced {
    /// Of a request that has come to or from `unit`.
    pub fn begin(worker: &Worker, config: &Config, unit: &Unit, headers: &dyn Headers) -> Self {
        let incoming = Incoming::read(headers);
        let span = incoming.span(|| worker.random(), unit.trace);
        let keeps = match worker.shared.spans.is_open() {
            true if span.is_sampled => Keeps::All,
            true if unit.trace_errors => Keeps::Failures,
            _ => Keeps::Nothing,
        };
        Self {
            incoming,
            parent: incoming.parent.map(|parent| parent.span_id),
            formats: config.propagate,
            span,
            keeps: Cell::new(keeps),
            waiting: RefCell::default(),
        }
    }

    /// The request as a whole, which came at `begun`.
    pub fn whole(&self, begun: Instant) -> Part<'_> {
        Part {
            traced: self,
            span: self.span,
            parent: self.parent,
            begun,
            is_whole: true,
        }
    }

    /// Of a copy of the request, which goes its own way below it.
    pub fn copy(&self, worker: &Worker) -> Self {
        let keeps = match self.keeps.get() {
            Keeps::All => Keeps::All,
            _ => Keeps::Nothing,
        };
        Self {
            parent: Some(self.span.span_id),
            span: self.span.child(worker.random()),
            keeps: Cell::new(keeps),
            waiting: RefCell::default(),
            ..*self
        }
    }

    /// A try that begins, of the request that came at `asked`: the clock is read where it is recorded only.
    pub fn attempt(&self, worker: &Worker, asked: Instant) -> Attempt {
        let span = self.span.child(worker.random());
        Attempt {
            span,
            begun: match self.keeps.get() {
                Keeps::Nothing => asked,
                Keeps::Failures | Keeps::All => Instant::now(),
            },
            callee: span.child(worker.random()),
        }
    }

    /// What is told to whom it goes as it is: the application, or the service that gets a copy.
    pub fn to_application(&self) -> Outgoing {
        self.incoming.outgoing(self.span, self.parent, self.formats)
    }

    /// What is told to whom a try calls: to the application, where it is one of this host.
    pub fn to_called(&self, attempt: &Attempt, is_local: bool) -> Outgoing {
        let (span, parent) = match is_local {
            true => (attempt.callee, attempt.span.span_id),
            false => (attempt.span, self.span.span_id),
        };
        self.incoming.outgoing(span, Some(parent), self.formats)
    }
}

impl Part<'_> {
    /// A try of this request.
    pub fn attempt(&self, attempt: &Attempt) -> Self {
        Self {
            span: attempt.span,
            parent: Some(self.traced.span.span_id),
            begun: attempt.begun,
            is_whole: false,
            ..*self
        }
    }

    /// The unit of this host that a try calls.
    pub fn callee(&self, attempt: &Attempt) -> Self {
        Self {
            span: attempt.callee,
            parent: Some(attempt.span.span_id),
            ..self.attempt(attempt)
        }
    }

    /// It is over.
    pub fn ended(&self, worker: &Worker, about: &About, entry: &Entry<'_>) {
        let keeps = &self.traced.keeps;
        if keeps.get() == Keeps::Nothing {
            return;
        }
        let kind = Kind::of(about.direction);
        let failed = failure(entry, kind);
        if keeps.get() == Keeps::Failures && self.is_whole {
            // Decided: what was and what comes of it.
            keeps.set(if failed.is_some() { Keeps::All } else { Keeps::Nothing });
            let waiting = self.traced.waiting.take().into_iter();
            waiting.for_each(|span| self.keep(worker, span));
        }
        if keeps.get() != Keeps::Nothing {
            self.keep(worker, self.request(about, entry, kind, failed));
        }
    }

    fn keep(&self, worker: &Worker, span: Finished) {
        match self.traced.keeps.get() {
            Keeps::All => worker.shared.spans.emit(span),
            Keeps::Failures => self.traced.waiting.borrow_mut().push(span),
            Keeps::Nothing => {}
        }
    }

    fn request(&self, about: &About, entry: &Entry<'_>, kind: Kind, failed: Option<Failure>) -> Finished {
        let asked = entry.arrived.asked;
        let method = known(asked.method);
        let mut attributes = vec![
            ("http.request.method", Value::from(method.unwrap_or("_OTHER"))),
            ("url.scheme", "http".into()),
            ("url.path", shortened(asked.path).into()),
            ("server.address", (&about.service).into()),
            ("server.port", about.port.into()),
            ("hostmesh.direction", about.direction.into()),
        ];
        if method.is_none() {
            attributes.push(("http.request.method_original", shortened(asked.method).into()));
        }
        if kind == Kind::Server {
            attributes.push(("client.address", about.client.to_string().into()));
            attributes.push(("network.peer.address", about.client.to_string().into()));
        }
        if !about.peer.is_empty() {
            attributes.push(("hostmesh.peer", (&about.peer).into()));
        }
        if entry.status != 0 {
            attributes.push(("http.response.status_code", entry.status.into()));
        }
        if entry.tries > 1 {
            attributes.push(match self.is_whole {
                true => ("hostmesh.tries", entry.tries.into()),
                false => ("http.request.resend_count", (entry.tries - 1).into()),
            });
        }
        if !entry.rule.is_empty() {
            attributes.push(("hostmesh.rule", entry.rule.to_owned().into()));
        }
        if let Some(flag) = entry.flag {
            attributes.push(("hostmesh.flag", flag.word().into()));
        }
        if !entry.route.is_empty() {
            attributes.push(("hostmesh.route", entry.route.to_owned().into()));
        }
        let failed = failed.map(|Failure { kind, message }| {
            attributes.push(("error.type", kind));
            message
        });
        Finished {
            name: method.map_or(Cow::Borrowed("HTTP"), Cow::Borrowed),
            attributes,
            failed,
            unit: about.unit.clone(),
            span: self.span,
            parent: self.parent,
            kind,
            begun_ns: since_epoch(self.begun),
            ended_ns: since_epoch(Instant::now()),
        }
    }

    /// What was dialed for this try: spans of the TCP connection and of the TLS handshake below it.
    pub fn dialed(&self, worker: &Worker, unit: &Arc<Unit>, steps: &Steps) {
        if self.traced.keeps.get() != Keeps::Nothing {
            let spans = steps.spans(worker, unit, self.span);
            spans.for_each(|span| self.keep(worker, span));
        }
    }
}

struct Failure {
    kind: Value,
    message: String,
}

/// By the conventions for HTTP: 5xx, for callers 4xx too, or no answer at all; and for gRPC.
fn failure(entry: &Entry<'_>, kind: Kind) -> Option<Failure> {
    let least = if kind == Kind::Client { 400 } else { 500 };
    let is_failure = entry.class().is_failure() || entry.status >= least || !entry.error.is_empty();
    let word = |entry: &Entry<'_>| match (entry.flag, entry.status) {
        (None, 200) => entry
            .arrived
            .progress
            .grpc_status
            .get()
            .map_or("_OTHER".into(), Value::from),
        (None, 0) => Value::from("_OTHER"),
        (None, status) => status.to_string().into(),
        (Some(flag), _) => flag.word().into(),
    };
    is_failure.then(|| Failure {
        kind: word(entry),
        message: entry.error.to_owned(),
    })
}

/// The methods of RFC 9110 and RFC 5789; others could be without number.
fn known(method: &str) -> Option<&'static str> {
    const METHODS: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    METHODS.into_iter().find(|known| *known == method)
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(LONGEST_PATH);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
