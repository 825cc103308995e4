//! Turns datagrams into queries that show who asked and where they were going, and answers as if from there
//! (docs/decisions/0002-dns-interception.md; ip(7), ipv6(7), socket(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hostmesh_proxy_core::config::Config;
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt as option,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::fdstore::{self, Inherited};
use crate::sockopt;

/// `SO_RCVMARK` of Linux 5.19 (asm-generic/socket.h), which libc does not name for every target.
const SO_RCVMARK: libc::c_int = 75;

/// The largest datagram.
const DATAGRAM: usize = 65_535;

/// The prefix of the sockets' names in systemd's fd store.
pub const FD_PREFIX: &str = "dns-";

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The message of RFC 1035.
    pub bytes: Vec<u8>,
    /// Who asked.
    pub from: SocketAddr,
    /// Whom was asked.
    pub to: SocketAddr,
    /// The mark of the packet: 0 where none was shown.
    pub mark: u32,
}

/// A transparent socket for the intercepted queries of one address family.
pub struct DnsSocket {
    socket: UdpSocket,
    buffer: Vec<u8>,
}

/// Opens the sockets on both loopback addresses, or takes them back from systemd: a query that comes while no proxy
/// runs then waits in the socket. Each comes with its name there. Answers carry the inbound mark. A host without IPv6 has one socket.
pub fn open(config: &Config, inherited: &Inherited) -> io::Result<Vec<(&'static str, Socket)>> {
    let mut kept = inherited.take(FD_PREFIX);
    let mut sockets = Vec::new();
    for (name, ip) in [
        ("dns-v4", IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ("dns-v6", IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ] {
        let address = SocketAddr::new(ip, config.listeners.dns);
        let found = kept.iter().position(|(kept, fd)| kept == name && is_bound(fd, address));
        let socket = match found.map(|index| Socket::from(kept.swap_remove(index).1)) {
            Some(socket) => socket,
            None => match bind(address) {
                Ok(socket) => {
                    fdstore::remove(name)?;
                    fdstore::store(name, &socket)?;
                    socket
                }
                Err(error) if ip.is_ipv6() && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => continue,
                Err(error) if ip.is_ipv6() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                Err(error) => return Err(io::Error::new(error.kind(), format!("{address}/udp: {error}"))),
            },
        };
        socket.set_mark(config.marks.inbound)?;
        sockets.push((name, socket));
    }
    Ok(sockets)
}

fn is_bound(fd: &OwnedFd, address: SocketAddr) -> bool {
    let socket = socket2::SockRef::from(fd);
    socket
        .local_addr()
        .is_ok_and(|local| local.as_socket() == Some(address))
        && socket.r#type().is_ok_and(|kind| kind == Type::DGRAM)
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    sockopt::transparent(&socket, address.ip())?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, option::Ipv6OrigDstAddr, &true)?;
    } else {
        setsockopt(&socket, option::Ipv4OrigDstAddr, &true)?;
    }
    show_mark(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn show_mark(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int from a live reference; the descriptor is borrowed for the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_RCVMARK,
            (&raw const on).cast(),
            size,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl DnsSocket {
    /// On the runtime of the calling thread.
    pub fn new(socket: Socket) -> io::Result<Self> {
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// The next query. Datagrams that do not show whom they were for are skipped.
    pub async fn receive(&mut self) -> io::Result<Query> {
        let Self { socket, buffer } = self;
        loop {
            if let Some(query) = socket.async_io(Interest::READABLE, || receive(socket, buffer)).await? {
                return Ok(query);
            }
        }
    }

    /// Sends an answer as if from where the query went. Does not wait: DNS over UDP may lose a datagram.
    pub fn answer(&self, query: &Query, bytes: &[u8]) -> io::Result<()> {
        let (v4, v6);
        let source = match query.to.ip() {
            IpAddr::V4(ip) => {
                let address = libc::in_addr {
                    s_addr: u32::from_ne_bytes(ip.octets()),
                };
                v4 = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: address,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(ip) => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                    ipi6_ifindex: 0,
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let (fd, to) = (self.socket.as_raw_fd(), SockaddrStorage::from(query.from));
        sendmsg(fd, &[IoSlice::new(bytes)], &[source], MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Query>> {
    let mut space = cmsg_space!(libc::sockaddr_in6, u32);
    let (length, from, mut to, mut mark);
    {
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
        (length, from, to, mark) = (
            message.bytes,
            message.address.and_then(|address| socket_addr(&address)),
            None,
            0,
        );
        for shown in message.cmsgs()? {
            match shown {
                ControlMessageOwned::Ipv4OrigDstAddr(address) => {
                    let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                    to = Some(SocketAddr::from((ip, u16::from_be(address.sin_port))));
                }
                ControlMessageOwned::Ipv6OrigDstAddr(address) => {
                    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                    to = Some(SocketAddr::from((ip, u16::from_be(address.sin6_port))));
                }
                ControlMessageOwned::Unknown(other)
                    if (other.cmsg_header.cmsg_level, other.cmsg_header.cmsg_type)
                        == (libc::SOL_SOCKET, libc::SO_MARK) =>
                {
                    mark = other
                        .data_bytes
                        .first_chunk()
                        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
                }
                _ => {}
            }
        }
    }
    Ok(from.zip(to).map(|(from, to)| Query {
        bytes: buffer[..length].to_vec(),
        from,
        to,
        mark,
    }))
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
