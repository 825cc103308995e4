//! Where requests of a unit's connection find connections to go by, and leave them for the next.

use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::Service;

use super::Calling;
use crate::breaker::Room;
use crate::connect::ConnectError;
use crate::http::conn::Conn;
use crate::http::down::Up;
use crate::http::hop::Hop;
use crate::http::route::Route;
use crate::stream::Stream;
use crate::traces::connection::Opening;
use crate::wire::idle::Key;

impl Calling {
    /// A connection for one request, and whether it has served others; where the service's policy leaves room for it, and
    /// in its time. `fresh`: not one that has.
    pub(super) async fn connect_with_room(
        &self,
        route: &Route,
        service: Option<&Arc<Service>>,
        hop: &Hop,
        fresh: bool,
        opening: &Opening,
    ) -> Result<(Up, bool, Room), ConnectError> {
        let mut room = match service {
            Some(service) => route.connector.room(service).await?,
            None => Room::default(),
        };
        let used = if fresh { None } else { self.kept(route, hop) };
        let (up, is_used) = match (used, service) {
            (Some(conn), _) => (Up::Http1(conn), true),
            // Boxed: most requests find a connection, and need no room for making one.
            (None, Some(service)) => {
                let connecting = self.connect(route, hop, fresh, opening);
                Box::pin(route.connector.in_time(service, connecting)).await?
            }
            (None, None) => Box::pin(self.connect(route, hop, fresh, opening)).await?,
        };
        room.connected();
        Ok((up, is_used, room))
    }

    /// A new connection, or one of HTTP/2 that has served others, and whether it has.
    async fn connect(
        &self,
        route: &Route,
        hop: &Hop,
        fresh: bool,
        opening: &Opening,
    ) -> Result<(Up, bool), ConnectError> {
        if hop.protocol.is_http2() {
            let (link, is_used) = self.links.get(hop.place(), fresh, connect(route, hop, opening)).await?;
            return Ok((Up::Http2(link), is_used));
        }
        Ok((Up::Http1(Conn::new(connect(route, hop, opening).await?)), false))
    }

    /// A connection of HTTP/1.1 to there that waits for a request.
    fn kept(&self, route: &Route, hop: &Hop) -> Option<Conn> {
        if hop.protocol.is_http2() {
            return None;
        }
        if let Some((unit, port)) = &hop.local {
            let mut kept = self.kept.borrow_mut();
            let fits = |(at, number, _): &(Arc<str>, u16, Conn)| *at == unit.unit && *number == port.port;
            let index = kept.iter().position(fits)?;
            return kept.swap_remove(index).2.if_clean();
        }
        let key = Key::new(&route.connector.unit.unit, hop.endpoint.as_ref()?, hop.target);
        let wire = self.worker.idle.take(&key)?;
        Some(Conn::new(Stream::Wire(Box::new(wire))))
    }

    /// The response has ended: the connection waits for the next request.
    pub(super) fn keep(&self, route: &Rc<Route>, hop: &Hop, up: Up) {
        let Up::Http1(up) = up else { return };
        match (&hop.local, &hop.endpoint) {
            (Some((unit, port)), _) if Rc::ptr_eq(route.called(), &self.route.borrow()) => {
                self.kept.borrow_mut().push((unit.unit.clone(), port.port, up));
            }
            (None, Some(endpoint)) => {
                if let Some(up) = up.if_clean() {
                    route.connector.release(endpoint, hop.target, up.into_parts().0);
                }
            }
            _ => {}
        }
    }
}

/// A new stream to the application, here or there.
async fn connect(route: &Route, hop: &Hop, opening: &Opening) -> Result<Stream, ConnectError> {
    let connector = &route.connector;
    if let Some((unit, port)) = &hop.local {
        return Ok(connector.deliver(unit, port).await?);
    }
    match &hop.endpoint {
        Some(endpoint) => connector.connect(endpoint, hop.target, true, opening).await,
        None => Err(ConnectError::Unreachable("nothing to connect to".to_owned())),
    }
}
