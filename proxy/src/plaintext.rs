//! Judges plain-text connections to meshed ports, which the ruleset sends here, and carries those that a policy names.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;

use hostmesh_proxy_core::authorize;
use hostmesh_proxy_core::flag::Flag;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::arriving::Arriving;
use crate::deliver;
use crate::http::conn::Conn;
use crate::http::{self, inbound::Who};
use crate::rejudge::{Asked, Opened};
use crate::sockopt;
use crate::stream::Stream;
use crate::tcp;
use crate::traces::connection::Opaque;
use crate::worker::{About, Worker};

/// The word for a caller without identity.
const PEER: &str = "plaintext";

/// Serves an accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, client: SocketAddr) {
    let begun = Instant::now();
    let Some(config) = worker.shared.config() else {
        return sockopt::abort(tcp);
    };
    let Ok(called) = tcp.local_addr() else {
        return sockopt::abort(tcp);
    };
    let client: IpAddr = client.ip().to_canonical();
    let found = config
        .unit_by_port(called.port())
        .and_then(|unit| Some((unit.clone(), *unit.port(called.port())?)));
    let Some((unit, port)) = found.filter(|_| sockopt::relayed(&tcp).is_ok()) else {
        return sockopt::abort(tcp);
    };
    let about = About {
        direction: if config.is_own_address(client) {
            "local"
        } else {
            "inbound"
        },
        peer: PEER.into(),
        service: unit.service.clone(),
        port: port.port,
        protocol: port.protocol.as_str(),
        client,
        sni: None,
        route: None,
        unit,
    };
    let who = Who::Plaintext {
        address: client,
        local: config.is_own_address(client),
    };
    let decision = authorize::connection(&about.unit, &who.caller(), port.port);
    if port.protocol.is_read() && decision.is_none_or(|decision| decision.verdict.passes()) {
        return http::inbound::serve(worker, config, about, who, Stream::Tcp(tcp)).await;
    }
    let mut opened = Opened::new(&worker, &config, begun);
    opened.trace = Opaque::begin(&worker, &about.unit, None);
    if port.protocol.is_watched() {
        let arriving = Arriving {
            about,
            who,
            port,
            config,
        };
        return match arriving.meet(&mut opened).await {
            Ok(met) => arriving.carry(&worker, opened, met, Conn::new(Stream::Tcp(tcp))).await,
            Err(_) => sockopt::abort(tcp),
        };
    }
    let Some(rule) = opened.ask(&config, about.clone(), Asked::ComeIn(who)) else {
        return sockopt::abort(tcp);
    };
    match opened
        .unless_denied(deliver::connect(&config, &about.unit, &port, client))
        .await
    {
        Some(Ok(application)) => {
            let relayed = tcp::relay(tcp, Stream::Tcp(application), None, pin!(opened.denied())).await;
            opened.ended(&about, &rule, &relayed);
        }
        Some(Err(error)) => {
            opened.failed(&about, Flag::ConnectFailure, error.to_string());
            sockopt::abort(tcp);
        }
        None => sockopt::abort(tcp),
    }
}
