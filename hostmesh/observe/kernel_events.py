"""Turns netlink notifications into wake-ups: addresses and links changed, somebody touched our table, rules or routes.

Parsing is pure; the watches own the sockets. What changed is not told: the loop looks at what is there (rtnetlink(7),
linux/netfilter/nf_tables.h).
"""

import errno
import socket
import struct

from hostmesh.apply.nlmsg import attributes, messages

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_LINK, _V4_ADDR, _V6_ADDR, _V4_ROUTE, _V6_ROUTE, _V4_RULE, _V6_RULE = 1, 5, 9, 7, 11, 8, 19
_ROUTE_GROUPS = (_LINK, _V4_ADDR, _V6_ADDR, _V4_ROUTE, _V6_ROUTE, _V4_RULE, _V6_RULE)
_NFT_GROUP = 7
_SUBSYS_NFTABLES = 10
_NFT_NEWGEN = 15
_ATTR_TABLE = 1  # the table's name is attribute 1 of every nf_tables message but the generation's
_NEWROUTE, _DELROUTE = 24, 25
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTA_OIF, _RTA_TABLE = 4, 15
_LOOPBACK = 1


def route_matters(kind: int, body: bytes, table: int) -> bool:
    """Is this rtnetlink message of interest? Links, addresses and rules always; routes of our table or over ``lo``."""
    if kind not in (_NEWROUTE, _DELROUTE):
        return True
    if len(body) < _RTMSG.size:
        return False
    found = dict(attributes(body[_RTMSG.size :]))
    numbers = {key: struct.unpack_from("=I", found[key])[0] for key in (_RTA_OIF, _RTA_TABLE) if key in found}
    return numbers.get(_RTA_TABLE) == table or numbers.get(_RTA_OIF) == _LOOPBACK


def nft_touches(kind: int, body: bytes, table: str) -> bool:
    """Does this nf_tables message speak of ``table``?"""
    if kind >> 8 != _SUBSYS_NFTABLES or kind & 0xFF == _NFT_NEWGEN:
        return False
    name = dict(attributes(body[4:])).get(_ATTR_TABLE, b"")
    return name.rstrip(b"\0").decode("utf-8", "replace") == table


class _Watch:
    def __init__(self, family: int, groups: tuple[int, ...]) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.setblocking(False)
        self._socket.bind((0, sum(1 << (group - 1) for group in groups)))

    def fileno(self) -> int:
        """For an event loop: readable when there is something to `read`."""
        return self._socket.fileno()

    def read(self) -> bool:
        """Take what is there, without waiting: is it worth a look? An overflow always is."""
        worth = False
        while True:
            try:
                datagram = self._socket.recv(1 << 18)
            except BlockingIOError:
                return worth
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                worth = True
            else:
                worth = worth or any(self._matters(kind, body) for kind, _, body in messages(datagram))

    def _matters(self, kind: int, body: bytes) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class RouteWatch(_Watch):
    """Links, addresses, policy rules, and our routes, in this network namespace."""

    def __init__(self, table: int) -> None:
        super().__init__(_NETLINK_ROUTE, _ROUTE_GROUPS)
        self._table = table

    def _matters(self, kind: int, body: bytes) -> bool:
        return route_matters(kind, body, self._table)


class NftWatch(_Watch):
    """Changes of one nftables table, by whomever. Needs CAP_NET_ADMIN."""

    def __init__(self, table: str) -> None:
        super().__init__(_NETLINK_NETFILTER, (_NFT_GROUP,))
        self._table = table

    def _matters(self, kind: int, body: bytes) -> bool:
        return nft_touches(kind, body, self._table)
