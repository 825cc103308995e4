"""Which netlink messages are worth a look. Built as the kernel builds them (rtnetlink(7), nf_tables)."""

import socket
import struct

from hostmesh.observe.kernel_events import nft_touches, route_matters

NEWLINK, NEWADDR, NEWROUTE, DELROUTE, DELRULE = 16, 20, 24, 25, 33
NFT = 10 << 8
NEWTABLE, DELTABLE, NEWSETELEM, NEWGEN = NFT | 0, NFT | 2, NFT | 12, NFT | 15


def attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return (struct.pack("=HH", size, kind) + value).ljust((size + 3) & ~3, b"\0")


def route(table: int, interface: int) -> bytes:
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, table & 0xFF, 73, 0, 1, 0)
    return head + attribute(15, struct.pack("=I", table)) + attribute(4, struct.pack("=I", interface))


def nft(name: str) -> bytes:
    return struct.pack("!BBH", 1, 0, 0) + attribute(1, name.encode() + b"\0")


def test_our_routes_count_those_of_others_do_not() -> None:
    assert route_matters(DELROUTE, route(7300, 2), 7300)
    assert route_matters(DELROUTE, route(254, 1), 7300), "a VIP's route: main table, over lo"
    assert not route_matters(NEWROUTE, route(254, 2), 7300)
    assert not route_matters(NEWROUTE, b"", 7300)


def test_links_addresses_rules_always_count() -> None:
    assert all(route_matters(kind, b"", 7300) for kind in (NEWLINK, NEWADDR, DELRULE))


def test_our_table_counts_those_of_others_do_not() -> None:
    assert nft_touches(DELTABLE, nft("hostmesh"), "hostmesh")
    assert nft_touches(NEWSETELEM, nft("hostmesh"), "hostmesh")
    assert not nft_touches(NEWTABLE, nft("docker"), "hostmesh")
    assert not nft_touches(NEWTABLE, nft("hostmesh2"), "hostmesh")
    assert not nft_touches(NEWGEN, nft("hostmesh"), "hostmesh")
    assert not nft_touches(1 << 8, nft("hostmesh"), "hostmesh")
