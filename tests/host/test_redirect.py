"""Whose packets go to the proxy, on a real kernel: marks, original destinations, IPv4, IPv6, loopback."""

import errno
import select
import time
from pathlib import Path

import pytest

from hostmesh.plan.redirect_sets import COUNTERS
from tests.host.plans import INBOUND, NUMBER, OUTBOUND, SETTINGS, SLICE, Bench, plan, policy
from tests.host.world import HERE4, HERE6, PEER4, PEER6, World, ask, ask_udp, in_world

pytestmark = pytest.mark.kernel
REMOTE = ("198.18.7.9", "2001:2:7::9", PEER4, PEER6, "240.240.0.5", "fd00:240::5")
LOCAL = ("127.0.0.1", "::1", HERE4, HERE6)


def meshed(world: World, tmp_path: Path, **options: object) -> Bench:
    world.cgroup(SLICE)
    bench = Bench(tmp_path)
    bench.apply(plan(policy(**options)))  # type: ignore[arg-type]
    return bench


def proxy(world: World) -> None:
    for address in ("127.0.0.1", "::1"):
        world.serve(address, 15001, transparent=True)


def test_a_units_connections_reach_the_proxy_with_its_number_and_destination(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path)
        proxy(world)
        for address in (*REMOTE, *LOCAL):
            seen = world.run(ask, address, 80, cgroup=SLICE)
            assert isinstance(seen, dict), (address, seen)
            assert (seen["mark"], seen["to"]) == (OUTBOUND, (address, 80))

    in_world(test)


def test_nobody_else_is_touched(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path)
        proxy(world)
        world.serve(PEER4, 80, peer=True)
        world.serve("127.0.0.1", 81)
        assert world.run(ask, PEER4, 80, cgroup=world.cgroup("other"))["peer"] == HERE4
        assert world.run(ask, "127.0.0.1", 81)["mark"] == 0
        for vip in ("240.240.0.5", "fd00:240::5"):
            code, seconds = world.run(ask, vip, 80, cgroup="other")
            assert code == errno.ECONNREFUSED
            assert seconds < 0.5

    in_world(test)


def test_without_the_proxy_nothing_is_reached(tmp_path: Path) -> None:
    """Neither who was called, nor whoever listens here on that port on all addresses."""

    def test(world: World) -> None:
        meshed(world, tmp_path)
        world.serve(PEER4, 80, peer=True)
        world.serve("0.0.0.0", 80, cgroup=world.cgroup("system.slice/other.service"))
        world.serve("::", 80, cgroup="system.slice/other.service")
        for address in (PEER4, PEER6, "240.240.0.5", "fd00:240::5", "127.0.0.1"):
            assert world.run(ask, address, 80, "", 0, 0.7, cgroup=SLICE)[0] == "timeout"

    in_world(test)


def test_a_call_waits_for_a_proxy_that_comes_back(tmp_path: Path) -> None:
    """The first packet was dropped, not reset: TCP sends it again (RFC 9293, 3.8.1) and finds the proxy there."""

    def test(world: World) -> None:
        meshed(world, tmp_path)
        answer = world.start(ask, PEER4, 80, "", 0, 10.0, cgroup=SLICE)
        world.run(wait_for_drop)
        proxy(world)
        assert answer()["mark"] == OUTBOUND

    in_world(test)


def wait_for_drop() -> None:
    """Until a connection is being tried in vain: seen in the socket table, as SYN_SENT (tcp_states.h: 2)."""
    deadline = time.monotonic() + 5
    while not any(line.split()[3] == "02" for line in Path("/proc/net/tcp").read_text().splitlines()[1:]):
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)


def test_a_mark_that_a_unit_gives_itself_frees_no_datagram(tmp_path: Path) -> None:
    """With CAP_NET_RAW, as what goes from a unit to the proxy is marked: it is a unit's datagram, refused like any."""

    def test(world: World) -> None:
        bench = meshed(world, tmp_path, outbound=())
        marks = (0, OUTBOUND, OUTBOUND + 1, INBOUND, INBOUND | SETTINGS.marks.delivered, SETTINGS.marks.proxy)
        addresses = (HERE4, HERE6, "127.0.0.1", "::1")
        for address in addresses:
            for mark in marks:
                seen = world.run(ask_udp, address, 9, 0.3, mark, cgroup=SLICE)
                assert seen == errno.EPERM, (address, hex(mark), seen)
        assert bench.nft.counters(COUNTERS)["refused_outbound"] == {NUMBER: len(addresses) * len(marks)}

    in_world(test)
