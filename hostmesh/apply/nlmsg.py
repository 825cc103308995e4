"""Turns netlink datagrams into messages and attributes, and back (netlink(7)). The host's byte order; no sockets."""

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300  # flags; DUMP is NLM_F_ROOT | NLM_F_MATCH
INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: what was dumped changed meanwhile
ERROR, DONE = 2, 3  # types


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One message, alone in its datagram."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(length, kind) + value).ljust(_align(length), b"\0")


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The messages of a datagram: (type, flags, body). Stops where one is cut short."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, flags, _, _ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size or at + length > len(datagram):
            return
        yield kind, flags, datagram[at + _HEADER.size : at + length]
        at += _align(length)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message's body: (type without flags, payload). Stops where one is cut short."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += _align(length)


def errno_of(body: bytes) -> int:
    """The positive errno of an ERROR message; 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", body)[0])


def _align(length: int) -> int:
    return (length + 3) & ~3
