//! Keeps CONNECT streams that carry HTTP/1.1 between requests, so that a request costs a frame and no new stream.
//!
//! Last in, first out: what the load does not need ages at the other end and goes after [`IDLE`].

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hostmesh_proxy_core::config::Endpoint;
use tokio::time::Instant;

use crate::stream::WireStream;

/// An idle stream is closed after this.
const IDLE: Duration = Duration::from_secs(30);
/// Idle streams of one key at most.
const KEPT: usize = 1024;

/// What a stream is good for: it was opened for exactly this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    unit: Arc<str>,
    spiffe_id: Arc<str>,
    host: Arc<str>,
    called: Option<IpAddr>,
    port: u16,
}

impl Key {
    /// From a unit of this host to a port of an endpoint.
    pub fn new(unit: &Arc<str>, endpoint: &Endpoint, port: u16) -> Self {
        Self {
            unit: unit.clone(),
            spiffe_id: endpoint.spiffe_id.clone(),
            host: endpoint.host.clone(),
            called: endpoint.called,
            port,
        }
    }
}

/// By who calls, and where it leads: the rest follows from that, but for a change of identity.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&*self.unit, &*self.host, self.port).hash(state);
    }
}

/// The idle streams of one worker.
#[derive(Default)]
pub struct IdleStreams(RefCell<HashMap<Key, VecDeque<(Instant, WireStream)>>>);

impl IdleStreams {
    /// The stream that was used last, if one is left that still lives.
    pub fn take(&self, key: &Key) -> Option<WireStream> {
        let mut all = self.0.borrow_mut();
        let streams = all.get_mut(key)?;
        while let Some((_, mut stream)) = streams.pop_back() {
            if stream.is_idle() {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a stream on which nothing is under way.
    pub fn put(&self, key: Key, mut stream: WireStream) {
        if stream.is_retired() || !stream.is_idle() {
            return stream.close();
        }
        let mut all = self.0.borrow_mut();
        let streams = all.entry(key).or_default();
        streams.push_back((Instant::now(), stream));
        if streams.len() > KEPT
            && let Some((_, oldest)) = streams.pop_front()
        {
            oldest.close();
        }
    }

    /// Closes what is old, ended, or on a connection that takes no more streams.
    pub fn sweep(&self) {
        self.0.borrow_mut().retain(|_, streams| {
            for _ in 0..streams.len() {
                let Some((since, mut stream)) = streams.pop_front() else {
                    break;
                };
                if since.elapsed() < IDLE && !stream.is_retired() && stream.is_idle() {
                    streams.push_back((since, stream));
                } else {
                    stream.close();
                }
            }
            streams.shrink_to_fit();
            !streams.is_empty()
        });
    }

    /// Streams kept now.
    pub fn len(&self) -> usize {
        self.0.borrow().values().map(VecDeque::len).sum()
    }

    /// Is none kept?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
