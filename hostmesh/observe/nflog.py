"""Turns nflog datagrams into kernel refusals: which rule refused which packet (linux/netfilter/nfnetlink_log.h).

Law: parsing is pure, `NflogReader` is the only thing that has a socket. Lines may be lost under flood (`lost`), the
ruleset's own named counters are exact.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hostmesh.apply import nlmsg
from hostmesh.errors import HostmeshError

_NETLINK_NETFILTER = 12
_SUBSYS_ULOG = 4
_MSG_PACKET, _MSG_CONFIG = 0, 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_QTHRESH = 1, 2, 4, 5
_CMD_BIND = 1
_COPY_PACKET = 2
_ATTR_MARK, _ATTR_PAYLOAD, _ATTR_PREFIX = 2, 9, 10
_GENMSG = struct.Struct("!BBH")  # nfgenmsg: family, version, group
_IPV6_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options: RFC 8200, section 4
_COPIED = 128  # bytes of each packet: IPv6 with options and the ports


class NflogError(HostmeshError):
    """The kernel didn't give the log group."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused packet. prefix: as the rule gives it (the reason: `plan/redirect.py`); mark: the unit's number, 0 for
    none; ports are 0 where the protocol has none."""

    prefix: str
    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    mark: int = 0


def refusals(datagram: bytes) -> Iterator[Refusal]:
    """The packets that a datagram of the log group carries; what isn't IP is left out."""
    for kind, _, body in nlmsg.messages(datagram):
        if kind != (_SUBSYS_ULOG << 8 | _MSG_PACKET) or len(body) < _GENMSG.size:
            continue
        found = dict(nlmsg.attributes(body[_GENMSG.size :]))
        prefix = found.get(_ATTR_PREFIX, b"").split(b"\0", 1)[0].decode("utf-8", "replace")
        refusal = packet(prefix, found.get(_ATTR_PAYLOAD, b""))
        if refusal:
            yield replace(refusal, mark=int.from_bytes(found.get(_ATTR_MARK, b""), "big"))


def packet(prefix: str, data: bytes) -> Refusal | None:
    """Read addresses and ports of an IPv4 or IPv6 packet (RFC 791, RFC 8200); None when it is neither."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        first_fragment = not int.from_bytes(data[6:8], "big") & 0x1FFF
        transport = (data[0] & 0x0F) * 4 if first_fragment else len(data)
        return _refusal(prefix, data[9], data[12:16], data[16:20], data[transport:])
    if version == 6 and len(data) >= 40:
        protocol, at = data[6], 40
        while protocol in _IPV6_EXTENSIONS and at + 2 <= len(data):
            protocol, at = data[at], at + (data[at + 1] + 1) * 8
        return _refusal(prefix, protocol, data[8:24], data[24:40], data[at:])
    return None


def _refusal(prefix: str, protocol: int, source: bytes, destination: bytes, transport: bytes) -> Refusal:
    ports = (0, 0)
    if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(transport) >= 4:
        ports = struct.unpack_from("!HH", transport)
    return Refusal(
        prefix, protocol,
        str(ipaddress.ip_address(source)), ports[0], str(ipaddress.ip_address(destination)), ports[1],
    )  # fmt: skip


def bind_request(group: int) -> bytes:
    """The message that binds a socket to a log group and asks for the head of each packet."""
    mode = struct.pack("!IBB", _COPIED, _COPY_PACKET, 0)
    body = _GENMSG.pack(socket.AF_UNSPEC, 0, group)
    for kind, value in (
        (_CFG_CMD, bytes([_CMD_BIND])),
        (_CFG_MODE, mode),
        (_CFG_TIMEOUT, struct.pack("!I", 5)),
        (_CFG_QTHRESH, struct.pack("!I", 32)),
    ):
        body += nlmsg.attribute(kind, value)
    return nlmsg.message(_SUBSYS_ULOG << 8 | _MSG_CONFIG, nlmsg.REQUEST | nlmsg.ACK, body)


class NflogReader:
    """A log group of the kernel in this network namespace. Needs CAP_NET_ADMIN. One reader a group: EBUSY otherwise."""

    def __init__(self, group: int) -> None:
        self.lost = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(2)
            self._socket.send(bind_request(group))
            self._expect_ack(group)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def _expect_ack(self, group: int) -> None:
        for kind, _, body in nlmsg.messages(self._socket.recv(65536)):
            if kind == nlmsg.ERROR:
                code = nlmsg.errno_of(body)
                if code:
                    reason = os.strerror(code)
                    raise NflogError(
                        f"the kernel does not give nflog group {group}: {reason}", "is another program reading it?"
                    )
                return
        raise NflogError(f"no answer of the kernel for nflog group {group}")

    def fileno(self) -> int:
        """For an event loop: readable when there is something to `read`."""
        return self._socket.fileno()

    def read(self) -> list[Refusal]:
        """All that is there now; never waits."""
        found: list[Refusal] = []
        while True:
            try:
                found.extend(refusals(self._socket.recv(1 << 18)))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1

    def close(self) -> None:
        """Unbind: the kernel does it with the socket."""
        self._socket.close()
