"""Turns the kernel's set elements that are keyed by cgroup into elements with paths (linux/netfilter/nf_tables.h).

libnftables walks the whole cgroup tree for each such element that it lists: 2 seconds for 100 units. Here the ids come
straight from the kernel, and the tree is walked once.
"""

import os
import socket
import struct
from collections.abc import Mapping

from hostmesh.apply import nlmsg
from hostmesh.errors import HostmeshError
from hostmesh.plan.ruleset import Element

_NETLINK_NETFILTER, _NFPROTO_INET = 12, 1
_SUBSYS_NFTABLES, _GET_ELEMENTS, _NEW_ELEMENTS = 10, 13, 12
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_KEY, _DATA, _USERDATA, _VALUE = 1, 2, 6, 1
_COMMENT = 0
_TRIES = 5


class SetError(HostmeshError):
    """The kernel didn't give the elements of a set."""


def cgroup_elements(table: str, name: str, paths: Mapping[int, str]) -> tuple[Element, ...]:
    """The elements of an inet table's set whose key begins with a cgroup, sorted; keys as nft lists them.

    paths: by cgroup id. An id that is not among them stays a number: that cgroup is gone.
    """
    for _ in range(_TRIES):
        found = _dump(table, name)
        if found is not None:
            return tuple(sorted(_element(raw, paths) for raw in found))
    raise SetError(f"set {name} changed while it was read, {_TRIES} times")


def _dump(table: str, name: str) -> list[bytes] | None:
    body = struct.pack("!BBH", _NFPROTO_INET, 0, 0) + _text(_LIST_TABLE, table) + _text(_LIST_SET, name)
    kind = _SUBSYS_NFTABLES << 8 | _GET_ELEMENTS
    found: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5)
        kernel.send(nlmsg.message(kind, nlmsg.REQUEST | nlmsg.DUMP, body))
        while True:
            for kind, flags, payload in nlmsg.messages(kernel.recv(1 << 18)):
                if flags & nlmsg.INTERRUPTED:
                    return None
                if kind == nlmsg.DONE:
                    return found
                if kind == nlmsg.ERROR:
                    raise SetError(f"set {name}: {os.strerror(nlmsg.errno_of(payload))}")
                if kind == (_SUBSYS_NFTABLES << 8 | _NEW_ELEMENTS):
                    elements = dict(nlmsg.attributes(payload[4:])).get(_LIST_ELEMENTS, b"")
                    found += [data for _, data in nlmsg.attributes(elements)]


def _element(raw: bytes, paths: Mapping[int, str]) -> Element:
    parts = dict(nlmsg.attributes(raw))
    key = dict(nlmsg.attributes(parts[_KEY]))[_VALUE]
    (cgroup,) = struct.unpack_from("=Q", key)
    text = f'"{paths.get(cgroup, cgroup)}"'
    if len(key) >= 12:
        text += f" . {struct.unpack_from('=I', key, 8)[0]:#010x}"
    value = dict(nlmsg.attributes(parts.get(_DATA, b""))).get(_VALUE)
    return Element(
        text, f"{struct.unpack_from('=I', value)[0]:#010x}" if value else "", _comment(parts.get(_USERDATA, b""))
    )


def _comment(userdata: bytes) -> str:
    """libnftnl's own attributes: a byte of type, a byte of length."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _COMMENT:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return ""


def _text(kind: int, value: str) -> bytes:
    return nlmsg.attribute(kind, value.encode() + b"\0")
