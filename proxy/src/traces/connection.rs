//! Spans of connections: of one that is carried unread, and of the steps to one between hosts.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::Arc;

use hostmesh_proxy_core::config::Unit;
use hostmesh_proxy_core::trace::{Incoming, Span, w3c};
use tokio::time::Instant;

use super::{Finished, Kind, Value, since_epoch};
use crate::tcp::Relayed;
use crate::worker::{About, Worker};

/// A dial, step by step.
#[derive(Debug, Clone)]
pub struct Steps {
    /// When it began.
    pub begun: Instant,
    /// When TCP was there, and with whom.
    pub connected: Option<(Instant, SocketAddr)>,
    /// When TLS was there, or nothing.
    pub ended: Instant,
    /// Why there is nothing.
    pub failed: Option<String>,
}

/// What goes with a stream that is opened to another host, and what is seen of its opening.
#[derive(Debug, Default)]
pub struct Opening {
    /// The place of the connection in its trace, for the other host's proxy.
    pub traceparent: Option<[u8; w3c::LENGTH]>,
    /// What was dialed for this stream, where there was no connection.
    pub dialed: OnceCell<Steps>,
}

impl Steps {
    /// The spans of these steps, below one of `unit`'s.
    pub fn spans(&self, worker: &Worker, unit: &Arc<Unit>, above: Span) -> impl Iterator<Item = Finished> {
        let step = |name, begun: Instant, ended: Instant| Finished {
            unit: unit.clone(),
            span: above.child(worker.random()),
            parent: Some(above.span_id),
            kind: Kind::Internal,
            name: Cow::Borrowed(name),
            begun_ns: since_epoch(begun),
            ended_ns: since_epoch(ended),
            attributes: Vec::new(),
            failed: None,
        };
        let mut connect = step(
            "TCP connect",
            self.begun,
            self.connected.map_or(self.ended, |(at, _)| at),
        );
        let shake = match self.connected {
            None => {
                connect.failed.clone_from(&self.failed);
                None
            }
            Some((at, peer)) => {
                connect.attributes = vec![
                    ("network.peer.address", Value::Text(peer.ip().to_string())),
                    ("network.peer.port", peer.port().into()),
                ];
                Some(Finished {
                    attributes: vec![("tls.protocol.version", "1.3".into())],
                    failed: self.failed.clone(),
                    ..step("TLS handshake", at, self.ended)
                })
            }
        };
        [Some(connect), shake].into_iter().flatten()
    }
}

/// The place in its trace of a connection whose bytes are carried unread.
pub struct Opaque {
    span: Span,
    parent: Option<u64>,
}

impl Opaque {
    /// Of a connection of `unit` that begins here, or below `parent`, its caller's; none where nothing is recorded.
    pub fn begin(worker: &Worker, unit: &Unit, parent: Option<&[u8]>) -> Option<Self> {
        if !worker.shared.spans.is_open() {
            return None;
        }
        let parent = parent.and_then(w3c::parse);
        let span = Incoming::below(parent).span(|| worker.random(), unit.trace);
        Some(Self {
            span,
            parent: parent.map(|parent| parent.span_id),
        })
    }

    /// What the other host's proxy is told.
    pub fn traceparent(&self) -> [u8; w3c::LENGTH] {
        w3c::write(&self.span)
    }

    /// What was dialed for it.
    pub fn dialed(&self, worker: &Worker, unit: &Arc<Unit>, steps: &Steps) {
        if self.span.is_sampled {
            let spans = steps.spans(worker, unit, self.span);
            spans.for_each(|span| worker.shared.spans.emit(span));
        }
    }

    /// It is over.
    pub fn ended(&self, worker: &Worker, about: &About, begun: Instant, relayed: &Relayed) {
        let failed = relayed.result.as_ref().err().map(ToString::to_string);
        let bytes = [
            ("hostmesh.sent_bytes", relayed.sent.into()),
            ("hostmesh.received_bytes", relayed.received.into()),
        ];
        self.record(worker, about, begun, failed, bytes);
    }

    /// It came to nothing.
    pub fn failed(&self, worker: &Worker, about: &About, begun: Instant, why: String) {
        self.record(worker, about, begun, Some(why), []);
    }

    fn record(
        &self,
        worker: &Worker,
        about: &About,
        begun: Instant,
        failed: Option<String>,
        more: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        // By `errors`, too, what failed is recorded.
        let is_wanted = self.span.is_sampled || (failed.is_some() && about.unit.trace_errors);
        if !is_wanted {
            return;
        }
        let mut attributes = vec![
            ("network.transport", "tcp".into()),
            ("network.protocol.name", about.protocol.into()),
            ("server.port", about.port.into()),
            ("client.address", about.client.to_string().into()),
            ("hostmesh.direction", about.direction.into()),
        ];
        if !about.service.is_empty() {
            attributes.push(("server.address", (&about.service).into()));
        }
        if !about.peer.is_empty() {
            attributes.push(("hostmesh.peer", (&about.peer).into()));
        }
        attributes.extend(more);
        worker.shared.spans.emit(Finished {
            unit: about.unit.clone(),
            span: self.span,
            parent: self.parent,
            kind: Kind::of(about.direction),
            name: Cow::Borrowed("TCP connection"),
            begun_ns: since_epoch(begun),
            ended_ns: since_epoch(Instant::now()),
            attributes,
            failed,
        });
    }
}
