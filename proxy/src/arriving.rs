//! Judges and carries what comes to a port on which each connection tells what is spoken, or asks for a server by name.
//!
//! Law: what is read as HTTP is judged request by request; everything else as bytes that may be anything, HTTP too. A rule
//! that asks about requests is not met by them where it allows, and met where it denies: so nobody gains by not being
//! understood.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::{Config, Port, Protocol};
use hostmesh_proxy_core::flag::Flag;

use crate::deliver;
use crate::http::conn::Conn;
use crate::http::inbound::{self, Who};
use crate::opening::{self, Told};
use crate::rejudge::{Asked, Opened, lets_in_requests_only};
use crate::stream::Stream;
use crate::worker::{About, Worker};

/// A connection that may come in by a rule, and the application; neither where only requests may: they bring their own.
#[derive(Default)]
pub struct Met {
    rule: Option<Arc<str>>,
    server: Option<Conn>,
}

/// Why a connection does not come in. It was counted and recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// By policy.
    Denied,
    /// The application cannot be reached.
    Unreachable,
}

/// A connection to a unit of this host.
pub struct Arriving {
    /// Whose it is and who calls.
    pub about: About,
    /// The caller.
    pub who: Who,
    /// The port.
    pub port: Port,
    /// The config in which the port was found.
    pub config: Arc<Config>,
}

impl Arriving {
    /// Asks what may come in, and connects to the application.
    pub async fn meet(&self, opened: &mut Opened) -> Result<Met, Refused> {
        let about = &self.about;
        if self.port.protocol == Protocol::Auto {
            if lets_in_requests_only(&about.unit, &self.who, self.port.port) {
                return Ok(Met::default());
            }
            opened.wait_until_told();
        }
        let rule = self.let_in(opened, about.clone()).ok_or(Refused::Denied)?;
        let connect = deliver::connect(&self.config, &about.unit, &self.port, about.client);
        match opened.unless_denied(connect).await {
            Some(Ok(application)) => Ok(Met {
                rule: Some(rule),
                server: Some(Conn::new(Stream::Tcp(application))),
            }),
            Some(Err(error)) => {
                opened.failed(about, Flag::ConnectFailure, error.to_string());
                Err(Refused::Unreachable)
            }
            None => Err(Refused::Denied),
        }
    }

    fn let_in(&self, opened: &mut Opened, about: About) -> Option<Arc<str>> {
        opened.ask(&self.config, about, Asked::ComeIn(self.who.clone()))
    }

    /// Carries it to its end.
    pub async fn carry(self, worker: &Rc<Worker>, mut opened: Opened, met: Met, mut client: Conn) {
        let Met { rule, mut server } = met;
        let limit = self.config.timeouts.head;
        let watching = opening::watch(&mut client, server.as_mut(), self.port.protocol, limit);
        let Some(seen) = opened.unless_denied(watching).await else {
            return client.deny();
        };
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                opened.failed(&self.about, Flag::Reset, error.to_string());
                return client.abort();
            }
        };
        let about = About {
            protocol: seen.told.protocol().as_str(),
            sni: seen.told.sni(),
            ..self.about.clone()
        };
        if let Told::Http(protocol) = seen.told {
            drop(opened); // its requests are judged and counted by themselves
            let told = inbound::Told {
                protocol: Some(protocol),
                application: server.filter(|_| seen.sent == 0 && !protocol.is_http2()),
            };
            return inbound::serve_told(worker.clone(), self.config, about, self.who, client, told).await;
        }
        if !opened.told(&self.config, &seen.told) {
            return client.deny();
        }
        let rule = rule.or_else(|| self.let_in(&mut opened, about.clone()));
        let (Some(rule), Some(server)) = (rule, server) else {
            return client.deny();
        };
        let relayed = opening::relay(client, server, seen.sent, None, pin!(opened.denied())).await;
        opened.ended(&about, &rule, &relayed);
    }
}
