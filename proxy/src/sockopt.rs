//! Sets what sockets need to carry other people's addresses (ip(7), socket(7), tcp(7)).
//!
//! The only unsafe code of the network side.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::descriptors;

fn set(fd: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int from a live reference; the descriptor is borrowed for the call.
    let done = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), size) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the socket have addresses that are not this host's (IP_TRANSPARENT, IPV6_TRANSPARENT); needs CAP_NET_RAW.
pub fn transparent(fd: &impl AsFd, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => set(fd, libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        IpAddr::V6(_) => set(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// Leaves the port to connect(2), so that one address has as many ports as there are peers (ip(7); IPv6 too).
pub fn bind_address_no_port(fd: &impl AsFd) -> io::Result<()> {
    set(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// The mark of the socket (SO_MARK): on an accepted one, what the ruleset gave to the first packet.
pub fn mark(stream: &TcpStream) -> io::Result<u32> {
    SockRef::from(stream).mark()
}

/// Closes with a reset (SO_LINGER 0), so that the application sees an error at once.
pub fn abort(stream: TcpStream) {
    // A socket that is closed already has nobody to tell.
    let _closed = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// A listening, non-blocking socket, one of several on the address (SO_REUSEPORT). An IPv6 wildcard takes IPv4 too.
pub fn listener(address: SocketAddr, is_transparent: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if is_transparent {
        transparent(&socket, address.ip())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket)
}

/// Connects with a mark (0: none), from an address of somebody else where `from` is given; its port is a new one.
pub async fn connect(to: SocketAddr, mark: u32, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    descriptors::spare(&socket)?;
    socket.set_nonblocking(true)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    if let Some(from) = from {
        transparent(&socket, from)?;
        bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Connects to the first of `whom`'s addresses that answers, each within `limit`; they are with whose address to come, as
/// in [`connect`]. Says which it was. The error is that of the last one.
pub async fn connect_any(
    whom: &str,
    to: Vec<(SocketAddr, Option<IpAddr>)>,
    mark: u32,
    limit: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{whom} has no address"));
    for (to, from) in to {
        last = match timeout(limit, connect(to, mark, from)).await {
            Ok(Ok(tcp)) => return Ok((tcp, to)),
            Ok(Err(error)) if descriptors::are_gone(&error) => return Err(error),
            Ok(Err(error)) => io::Error::new(error.kind(), format!("{to}: {error}")),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("{to}: no answer within {limit:?}")),
        };
    }
    Err(last)
}

/// These addresses for [`connect_any`], to be come to from this host's own.
pub fn at(addresses: &[IpAddr], port: u16) -> Vec<(SocketAddr, Option<IpAddr>)> {
    addresses
        .iter()
        .map(|address| (SocketAddr::new(*address, port), None))
        .collect()
}

/// Settings of a relayed connection: nothing waits to be full, a dead peer is noticed though nobody speaks.
pub fn relayed(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Settings of a wire connection: data that is not acknowledged for `limit` ends it (TCP_USER_TIMEOUT).
pub fn wire(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(limit))
}
