//! Turns the snapshot's ports into listening sockets, one of each kind a worker, that outlive the process.
//!
//! Law: a socket that nobody accepts on still gets its share of the connections (SO_REUSEPORT), and one that is closed
//! resets those that wait in it. So what there is of the wanted address is served, by more workers or by fewer; the rest,
//! which nobody wants, is closed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use hostmesh_proxy_core::snapshot::Listeners;

use crate::descriptors;
use crate::fdstore::{self, Inherited, Named};
use crate::shared::Shared;
use crate::sockopt;

/// The names in the fd store begin so.
const PREFIX: &str = "listen-";

/// Workers of a process at most.
pub const MOST_SLOTS: usize = 1024;

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

/// The listeners of a process.
pub struct Listening {
    /// One set for each worker.
    pub sets: Vec<Set>,
    /// Duplicates of all of them, for who takes over.
    pub named: Vec<Named>,
}

/// A set for each worker: inherited where the address still fits, else new and left with the service manager.
pub fn open(ports: &Listeners, workers: usize, inherited: &Inherited) -> io::Result<Listening> {
    let mut kept: HashMap<String, TcpListener> = HashMap::new();
    for (name, fd) in inherited.take(PREFIX) {
        kept.insert(name, TcpListener::from(fd));
    }
    let mut opened = Listening {
        sets: (0..workers).map(|_| Set::new()).collect(),
        named: Vec::new(),
    };
    // As many as there were workers before, if these were more.
    let slots = kept.keys().filter_map(|name| name.rsplit_once('-')?.1.parse().ok());
    let slots = slots.map(|slot: usize| slot.saturating_add(1)).max();
    for slot in 0..slots.unwrap_or_default().clamp(workers, workers.max(MOST_SLOTS)) {
        for (kind, name, address) in wanted(ports) {
            let name = format!("{PREFIX}{name}-{slot}");
            let old = kept.remove(&name);
            let was_kept = old.is_some();
            let fits = old.filter(|old| {
                old.local_addr()
                    .is_ok_and(|at| at == address || at == without_ipv6(address))
            });
            if was_kept && fits.is_none() {
                fdstore::remove(&name)?;
            }
            let listener = match fits {
                None if slot < workers => new(&name, address, kind)?,
                fits => fits,
            };
            if let Some(listener) = listener {
                opened.named.push((name, listener.try_clone()?.into()));
                opened.sets[slot % workers].push((kind, listener));
            }
        }
    }
    for name in kept.keys() {
        fdstore::remove(name)?;
    }
    Ok(opened)
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

/// Accepts until told to stop or until another process does, and hands each connection on. Where no descriptor can be had for one, it waits.
pub async fn accept(
    listener: tokio::net::TcpListener,
    shared: Arc<Shared>,
    mut each: impl FnMut(tokio::net::TcpStream, SocketAddr),
) {
    let (mut draining, mut retired) = (shared.draining(), shared.retired());
    let told = &shared.told;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = draining.wait_for(|draining| *draining) => return,
            _ = retired.wait_for(|retired| *retired) => return,
        };
        match accepted {
            Ok((stream, client)) => {
                if let Ok(stream) = descriptors::below(stream, told).await {
                    each(stream, client);
                }
            }
            // accept(2): this one's own, and it is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Out of descriptors or memory, most likely: waiting helps, and is all that does.
            Err(_) => descriptors::none_left(told).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Listeners {
        let free: Vec<_> = (0..4)
            .map(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a port"))
            .collect();
        let port = |index: usize| free[index].local_addr().expect("an address").port();
        Listeners {
            outbound: port(0),
            plaintext: port(1),
            wire: port(2),
            dns: port(3),
        }
    }

    fn addresses(listening: &Listening) -> Vec<usize> {
        listening.sets.iter().map(Vec::len).collect()
    }

    #[test]
    fn what_a_process_listened_on_is_served_by_more_workers_and_by_fewer() {
        let (ports, nothing) = (ports(), Inherited::of(Vec::new()));
        let three = open(&ports, 3, &nothing).expect("CAP_NET_RAW");
        assert_eq!(addresses(&three), [5, 5, 5]);
        let inodes = |listening: &Listening| {
            let stat = |(_, fd): &Named| nix::sys::stat::fstat(fd).expect("stat").st_ino;
            let mut all: Vec<_> = listening.named.iter().map(stat).collect();
            all.sort_unstable();
            all
        };
        let before = inodes(&three);
        let one = open(&ports, 1, &Inherited::of(three.named)).expect("taken over");
        assert_eq!(addresses(&one), [15]);
        assert_eq!(inodes(&one), before, "the very same sockets");
        let four = open(&ports, 4, &Inherited::of(one.named)).expect("taken over");
        assert_eq!(addresses(&four), [5, 5, 5, 5]);
        assert!(before.iter().all(|inode| inodes(&four).contains(inode)));
    }
}
