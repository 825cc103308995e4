//! Turns the snapshot's ports into listening sockets, one of each kind a worker, that outlive the process.
//!
//! Law: what the service manager keeps and no worker takes is closed: a socket that nobody accepts on still gets its share
//! of the connections (SO_REUSEPORT).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hostmesh_proxy_core::snapshot::Listeners;

use crate::descriptors;
use crate::fdstore::{self, Inherited};
use crate::shared::Shared;
use crate::sockopt;

/// The names in the fd store begin so.
const PREFIX: &str = "listen-";

/// What a listener's connections are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of meshed units, to anywhere.
    Outbound,
    /// Of anybody, to a meshed port, in plain text.
    Plaintext,
    /// Of other hosts' proxies.
    Wire,
}

/// One worker's listeners.
pub type Set = Vec<(Kind, TcpListener)>;

fn wanted(ports: &Listeners) -> [(Kind, &'static str, SocketAddr); 5] {
    let (four, six): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let any = Ipv6Addr::UNSPECIFIED.into();
    [
        (Kind::Outbound, "outbound4", SocketAddr::new(four, ports.outbound)),
        (Kind::Outbound, "outbound6", SocketAddr::new(six, ports.outbound)),
        (Kind::Plaintext, "plaintext4", SocketAddr::new(four, ports.plaintext)),
        (Kind::Plaintext, "plaintext6", SocketAddr::new(six, ports.plaintext)),
        (Kind::Wire, "wire", SocketAddr::new(any, ports.wire)),
    ]
}

/// A set for each worker: inherited where the address still fits, else new and left with the service manager.
pub fn open(ports: &Listeners, workers: usize, inherited: &Inherited) -> io::Result<Vec<Set>> {
    let mut kept: HashMap<String, OwnedFd> = inherited.take(PREFIX).into_iter().collect();
    let mut sets = Vec::with_capacity(workers);
    for worker in 0..workers {
        let mut set = Set::new();
        for (kind, name, address) in wanted(ports) {
            let name = format!("{PREFIX}{name}-{worker}");
            let old = kept.remove(&name).map(TcpListener::from);
            let fits = old.filter(|old| {
                old.local_addr()
                    .is_ok_and(|at| at == address || at == without_ipv6(address))
            });
            let listener = match fits {
                Some(listener) => Some(listener),
                None => {
                    fdstore::remove(&name)?;
                    new(&name, address, kind)?
                }
            };
            set.extend(listener.map(|listener| (kind, listener)));
        }
        sets.push(set);
    }
    for name in kept.keys() {
        fdstore::remove(name)?;
    }
    Ok(sets)
}

/// `None`: an IPv6 address on a host without IPv6, where nobody can call it either.
fn new(name: &str, address: SocketAddr, kind: Kind) -> io::Result<Option<TcpListener>> {
    let socket = match sockopt::listener(address, kind != Kind::Wire) {
        Err(error) if address.is_ipv6() && is_without_ipv6(&error) => match kind {
            Kind::Wire => sockopt::listener(without_ipv6(address), false),
            _ => return Ok(None),
        },
        opened => opened,
    };
    let socket = socket.map_err(|error| io::Error::new(error.kind(), format!("listening on {address}: {error}")))?;
    fdstore::store(name, &socket)?;
    Ok(Some(socket.into()))
}

/// The wildcard of IPv4 for that of IPv6; any other address as it is.
fn without_ipv6(address: SocketAddr) -> SocketAddr {
    let is_wildcard = address.ip().is_unspecified();
    if is_wildcard {
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())
    } else {
        address
    }
}

/// ipv6.disable=1 knows no such family, net.ipv6.conf.all.disable_ipv6=1 no such address.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Accepts until told to stop, and hands each connection on. Where no descriptor can be had for one, it waits.
pub async fn accept(
    listener: tokio::net::TcpListener,
    shared: Arc<Shared>,
    mut each: impl FnMut(tokio::net::TcpStream, SocketAddr),
) {
    let mut draining = shared.draining();
    let told = &shared.told;
    loop {
        let next = async {
            match listener.accept().await {
                Ok((stream, client)) => Some((descriptors::below(stream, told).await.ok()?, client)),
                // accept(2): this one's own, and it is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
                // Out of descriptors or memory, most likely: waiting helps, and is all that does.
                Err(_) => {
                    descriptors::none_left(told).await;
                    None
                }
            }
        };
        tokio::select! {
            accepted = next => if let Some((stream, client)) = accepted {
                each(stream, client);
            },
            _ = draining.wait_for(|draining| *draining) => return,
        }
    }
}
