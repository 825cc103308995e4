"""Turns the kernel's socket table into listeners by cgroup: who listens where (sock_diag(7), linux/inet_diag.h)."""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from hostmesh.apply import nlmsg
from hostmesh.errors import HostmeshError

_NETLINK_SOCK_DIAG, _BY_FAMILY = 4, 20
_LISTEN = 1 << 10
_CGROUP_ID = 21
_REQUEST = struct.Struct("=BBBBI48x")
_MESSAGE = struct.Struct("!4xHH16s16s")  # inet_diag_msg up to the addresses
_MESSAGE_SIZE = 72


class SocketTableError(HostmeshError):
    """The kernel didn't give its socket table."""


def listeners() -> dict[int, frozenset[tuple[str, int]]]:
    """(address, port) of the TCP listeners of this network namespace, by id of the cgroup in which each was born."""
    found: dict[int, set[tuple[str, int]]] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(2)
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
            kernel.send(nlmsg.message(_BY_FAMILY, nlmsg.REQUEST | nlmsg.DUMP, body))
            for cgroup, address, port in _answers(kernel):
                found.setdefault(cgroup, set()).add((address, port))
    return {cgroup: frozenset(places) for cgroup, places in found.items()}


def _answers(kernel: socket.socket) -> Iterator[tuple[int, str, int]]:
    while True:
        for kind, _, body in nlmsg.messages(kernel.recv(1 << 18)):
            if kind == nlmsg.DONE:
                return
            if kind == nlmsg.ERROR:
                raise SocketTableError(f"sock_diag: {os.strerror(nlmsg.errno_of(body))}")
            yield parse(body)


def parse(body: bytes) -> tuple[int, str, int]:
    """One inet_diag_msg: cgroup id (0 where the kernel tells none), address, port."""
    port, _, source, _ = _MESSAGE.unpack_from(body)
    address = source if body[0] == socket.AF_INET6 else source[:4]
    cgroup = dict(nlmsg.attributes(body[_MESSAGE_SIZE:])).get(_CGROUP_ID, b"")
    return int.from_bytes(cgroup, "little" if _LITTLE else "big"), str(ipaddress.ip_address(address)), port


_LITTLE = struct.pack("=H", 1) == b"\1\0"
