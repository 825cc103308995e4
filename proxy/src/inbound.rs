//! Judges CONNECT streams from other hosts and carries them to the units that they call.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use ::http::StatusCode;
use hostmesh_proxy_core::authorize::RULE_UNKNOWN_UNIT;
use hostmesh_proxy_core::config::{Config, Port, Unit};
use hostmesh_proxy_core::flag::Flag;
use tokio::time::Instant;

use crate::arriving::{Arriving, Refused};
use crate::deliver;
use crate::events::Event;
use crate::http::conn::Conn;
use crate::http::{self, inbound::Who};
use crate::rejudge::{Asked, Opened};
use crate::stream::Stream;
use crate::tcp;
use crate::traces::connection::Opaque;
use crate::wire::server::Call;
use crate::worker::{About, Worker};

/// Answers one CONNECT, to its end.
pub async fn answer(worker: &Rc<Worker>, call: Call) {
    let begun = Instant::now();
    let Some(config) = worker.shared.config() else {
        return call.refuse(StatusCode::SERVICE_UNAVAILABLE);
    };
    let Some(unit) = config.unit_by_sni(&call.link.sni).cloned() else {
        let message = format!(
            "{} calls {}, which is no unit of this host",
            call.link.peer.spiffe_id, call.link.sni
        );
        worker.stats.denied(RULE_UNKNOWN_UNIT);
        worker
            .shared
            .events
            .emit(Event::denied("", "inbound", RULE_UNKNOWN_UNIT, message));
        return call.refuse(StatusCode::NOT_FOUND);
    };
    let called = call.port(|address| config.is_own_address(address));
    let Some(port) = called.and_then(|number| unit.port(number)).copied() else {
        let about = about(&call, &unit, called.unwrap_or_default(), "tcp");
        let message = format!(
            "{} calls a port that the unit does not declare: {}",
            about.peer,
            call.asked()
        );
        about.denied(worker, &unit.rule_default, Flag::Denied, message);
        return call.refuse(StatusCode::NOT_FOUND);
    };
    let about = about(&call, &unit, port.port, port.protocol.as_str());
    if port.protocol.is_read() {
        return http(worker, config, call, about, begun).await;
    }
    let mut opened = Opened::new(worker, &config, begun);
    opened.trace = Opaque::begin(worker, &unit, call.traceparent());
    let who = Who::Identity(about.peer.clone());
    if port.protocol.is_watched() {
        let arriving = Arriving {
            about,
            who,
            port,
            config,
        };
        return watched(worker, call, arriving, opened).await;
    }
    match opened.ask(&config, about.clone(), Asked::ComeIn(who)) {
        Some(rule) => deliver(worker, &config, call, about, port, &opened, &rule).await,
        None => call.refuse(StatusCode::FORBIDDEN),
    }
}

fn about(call: &Call, unit: &Arc<Unit>, port: u16, protocol: &'static str) -> About {
    About {
        unit: unit.clone(),
        direction: "inbound",
        peer: call.link.peer.spiffe_id.clone(),
        service: unit.service.clone(),
        port,
        protocol,
        client: call.link.client,
        sni: None,
        route: None,
    }
}

/// Judged request by request.
async fn http(worker: &Rc<Worker>, config: Arc<Config>, call: Call, about: About, begun: Instant) {
    match call.accept(worker) {
        Ok(stream) => {
            let who = Who::Identity(about.peer.clone());
            http::inbound::serve(worker.clone(), config, about, who, Stream::Wire(Box::new(stream))).await;
        }
        Err(error) => about.failed(worker, begun, None, error.to_string()),
    }
}

async fn deliver(
    worker: &Rc<Worker>,
    config: &Arc<Config>,
    call: Call,
    about: About,
    port: Port,
    opened: &Opened,
    rule: &str,
) {
    let connect = deliver::connect(config, &about.unit, &port, about.client);
    let application = match opened.unless_denied(connect).await {
        Some(Ok(application)) => application,
        Some(Err(error)) => {
            opened.failed(&about, Flag::ConnectFailure, error.to_string());
            return call.refuse(StatusCode::SERVICE_UNAVAILABLE);
        }
        None => return call.refuse(StatusCode::FORBIDDEN),
    };
    match call.accept(worker) {
        Ok(stream) => {
            let relayed = tcp::relay(application, Stream::Wire(Box::new(stream)), None, pin!(opened.denied())).await;
            opened.ended(&about, rule, &relayed.reversed());
        }
        Err(error) => opened.failed(&about, Flag::ConnectFailure, error.to_string()),
    }
}

/// The connection tells what is spoken.
async fn watched(worker: &Rc<Worker>, call: Call, arriving: Arriving, mut opened: Opened) {
    let met = match arriving.meet(&mut opened).await {
        Ok(met) => met,
        Err(Refused::Denied) => return call.refuse(StatusCode::FORBIDDEN),
        Err(Refused::Unreachable) => return call.refuse(StatusCode::SERVICE_UNAVAILABLE),
    };
    match call.accept(worker) {
        Ok(stream) => {
            let client = Conn::new(Stream::Wire(Box::new(stream)));
            arriving.carry(worker, opened, met, client).await;
        }
        Err(error) => opened.failed(&arriving.about, Flag::ConnectFailure, error.to_string()),
    }
}
