"""The guard on a real kernel: with the ruleset gone nothing of a meshed unit gets out or in but over loopback."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nftables import Nftables

from hostmesh.apply.bpf import Bpf, BpfError
from hostmesh.apply.nft import Nft
from hostmesh.plan.guard import guard_program
from tests.host.attach import attach_guard
from tests.host.plans import SETTINGS, SLICE, Bench, plan, policy
from tests.host.world import CGROUP, HERE4, HERE6, PEER4, PEER6, World, ask, ask_udp, in_world, listener

pytestmark = pytest.mark.kernel
PINS = Path("/sys/fs/bpf/hostmesh")
ALLOWED, PROXY, OUTBOUND, INBOUND = (
    SETTINGS.marks.allowed,
    SETTINGS.marks.proxy,
    SETTINGS.marks.outbound,
    SETTINGS.marks.inbound,
)


def guarded(world: World, tmp_path: Path, **options: object) -> Bench:
    world.cgroup(SLICE)
    assert Bpf(PINS).pin_guard(guard_program(ALLOWED, OUTBOUND | INBOUND)) == (
        str(PINS / "egress"),
        str(PINS / "ingress"),
    )
    attach_guard(CGROUP / "mesh.slice", PINS)
    bench = Bench(tmp_path)
    bench.apply(plan(policy(**options)))  # type: ignore[arg-type]
    for address in (PEER4, PEER6):
        world.serve(address, 80, peer=True)
        world.serve(address, 123, peer=True, udp=True)
        world.serve(address, 124, peer=True, udp=True)
    return bench


def flush() -> None:
    code, _, error = Nftables().cmd("flush ruleset")
    assert code == 0, error


def test_pinning_again_and_a_program_that_is_none() -> None:
    def test(_: World) -> None:
        bpf = Bpf(PINS)
        bpf.pin_guard(guard_program(ALLOWED, OUTBOUND | INBOUND))
        bpf.pin_guard(guard_program(ALLOWED, OUTBOUND | INBOUND))
        assert sorted(path.name for path in PINS.iterdir()) == ["egress", "ingress"]
        with pytest.raises(BpfError, match="load the guard"):
            bpf.pin_guard(b"\0" * 8)

    in_world(test)


def test_a_flushed_ruleset_lets_nothing_out(tmp_path: Path) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path)
        flush()
        for address in (PEER4, PEER6):
            assert world.run(ask, address, 80, "", 0, 1.0, cgroup=SLICE)[0] == "timeout"
            assert world.run(ask_udp, address, 123, 1.0, cgroup=SLICE) in ("timeout", errno.EPERM)
            assert world.run(ask, address, 80)["peer"] in (HERE4, HERE6)  # others are free

    in_world(test)


def test_a_connection_that_was_open_says_nothing_more(tmp_path: Path) -> None:
    def test(world: World) -> None:
        """Opened before the guard, as if the unit had always been there; its next bytes stay here."""
        world.cgroup(SLICE)
        Bpf(PINS).pin_guard(guard_program(ALLOWED, OUTBOUND | INBOUND))
        world.serve(PEER4, 80, peer=True)

        def talk() -> str:
            with socket.create_connection((PEER4, 80), 3) as client:
                attach_guard(CGROUP / "mesh.slice", PINS)
                client.settimeout(1.0)
                try:
                    client.send(b"secret")
                    return client.recv(4096).hex() or "closed"
                except TimeoutError:
                    return "timeout"

        # What the peer sent before the guard may have come already; after it, nothing does.
        first = world.run(talk, cgroup=SLICE)
        assert first
        assert world.run(ask, PEER4, 80, "", 0, 1.0, cgroup=SLICE)[0] == "timeout"

    in_world(test)


def test_a_flushed_ruleset_lets_nothing_in(tmp_path: Path) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path)
        flush()
        for address, any_address in ((HERE4, "0.0.0.0"), (HERE6, "::")):
            world.serve(any_address, 8080, cgroup=SLICE)
            world.serve(any_address, 5353, cgroup=SLICE, udp=True)
            assert world.run(ask, address, 8080, "", 0, 1.0, peer=True)[0] == "timeout"
            assert world.run(ask_udp, address, 5353, 1.0, peer=True) == "timeout"
            assert world.run(ask_udp, address, 5353)["data"] == b"?"

    in_world(test)


def test_a_flushed_ruleset_leaves_no_way_round_the_proxy_on_this_host(tmp_path: Path) -> None:
    """Over loopback too: no neighbour reaches the unit, and the unit no neighbour, but by the proxy."""

    def test(world: World) -> None:
        guarded(world, tmp_path)
        for address in ("127.0.0.1", "::1", HERE4, HERE6):
            world.serve(address, 8080, cgroup=SLICE)
            world.serve(address, 9090)
        flush()
        for address in ("127.0.0.1", "::1", HERE4, HERE6):
            assert world.run(ask, address, 8080, "", 0, 0.5)[0] == "timeout"
            assert world.run(ask, address, 9090, "", 0, 0.5, cgroup=SLICE)[0] == "timeout"
            assert world.run(ask, address, 9090)["mark"] == 0, "others are free"
            for mark in (INBOUND | 7, OUTBOUND | 7):  # as the proxy's own packets are
                assert isinstance(world.run(ask, address, 8080, "", mark), dict)

    in_world(test)


def test_without_outbound_policy_other_protocols_pass_and_their_replies_come_in(tmp_path: Path) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path)
        for address in (PEER4, PEER6):
            assert world.run(ask_udp, address, 123, cgroup=SLICE)["data"] == b"?"
            assert world.run(ping, address, cgroup=SLICE)
        # but who was not asked gets no answer: a UDP service of the unit is closed to the network
        world.serve("0.0.0.0", 5353, cgroup=SLICE, udp=True)
        assert world.run(ask_udp, HERE4, 5353, 1.0, peer=True) == "timeout"

    in_world(test)


def test_outbound_policy_names_single_addresses_and_ports(tmp_path: Path) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path, outbound=((f"{PEER4}/32", 123), (f"{PEER6}/128", 123), ("2001:2:9::/64", 124)))
        for address in (PEER4, PEER6):
            assert world.run(ask_udp, address, 123, cgroup=SLICE)["data"] == b"?"
            assert world.run(ask_udp, address, 124, cgroup=SLICE) == errno.EPERM

    in_world(test)


def ping(address: str) -> bool:
    """An ICMP echo by a raw socket, as ping(8)."""
    six = ":" in address
    kind = (socket.AF_INET6, socket.getprotobyname("ipv6-icmp")) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    with socket.socket(kind[0], socket.SOCK_RAW, kind[1]) as raw:
        raw.settimeout(2)
        raw.sendto(bytes.fromhex("8000e5ca12340001") if six else bytes.fromhex("0800e5ca12340001"), (address, 0))
        while True:
            data = raw.recv(2048)
            answer = data if six else data[20:]
            if answer[0] == (129 if six else 0):
                return True


def test_outbound_policy_holds_for_every_protocol(tmp_path: Path) -> None:
    def test(world: World) -> None:
        networks = ((f"{PEER4}/32", 123), ("2001:2:7::/64", 0), ("203.0.113.0/24", 0), ("2001:2:9::5/128", 53))
        bench = guarded(world, tmp_path, outbound=networks)
        assert world.run(ask_udp, PEER4, 123, cgroup=SLICE)["data"] == b"?"
        assert world.run(ask_udp, PEER6, 124, cgroup=SLICE)["data"] == b"?"
        assert world.run(ask_udp, PEER4, 124, cgroup=SLICE) == errno.EPERM
        with pytest.raises(AssertionError, match="Operation not permitted"):
            world.run(ping, PEER4, cgroup=SLICE)
        assert bench.nft.counters(("refused_outbound",))["refused_outbound"][7] == 2
        assert world.run(ask_udp, PEER4, 124)["data"] == b"?"  # others are free

    in_world(test)


@pytest.mark.parametrize(
    "forged", [PROXY, PROXY | ALLOWED, ALLOWED, INBOUND | ALLOWED, PROXY | INBOUND | ALLOWED, OUTBOUND | 9 | ALLOWED]
)
def test_a_unit_with_net_raw_cannot_step_round(tmp_path: Path, forged: int) -> None:
    """SO_MARK of its own, before the connection and after: nothing of it reaches the network in plain text."""

    def test(world: World) -> None:
        guarded(world, tmp_path)
        for address in ("127.0.0.1", "::1"):
            world.serve(address, 15001, transparent=True)
        for address, source in ((PEER4, HERE4), (PEER6, HERE6), (PEER4, ""), (PEER6, "")):
            seen = world.run(ask, address, 80, source, forged, 1.0, cgroup=SLICE)
            # the proxy, with the true number, or nobody: never the peer, who would see no mark
            assert not isinstance(seen, dict) or seen["mark"] == OUTBOUND | 7

    in_world(test)


def sniff(ready: int, seconds: float) -> bool:
    """Does any packet with ``secret`` in it come over the wire within that time?"""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        os.write(ready, b"ok")
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            tap.settimeout(left)
            try:
                if b"secret" in tap.recv(65536):
                    return True
            except TimeoutError:
                return False
    return False


@pytest.mark.parametrize("forged", [PROXY, PROXY | ALLOWED, INBOUND | ALLOWED, ALLOWED])
def test_a_mark_set_after_the_proxy_accepted_leaks_nothing(tmp_path: Path, forged: int) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path)
        world.serve("127.0.0.1", 15001, transparent=True)

        def talk(mark: int) -> None:
            with socket.create_connection((PEER4, 80), 3) as client:
                assert client.recv(4096)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                client.send(b"secret")

        tap = world.start_ready(sniff, 1.0, peer=True)
        world.run(talk, forged, cgroup=SLICE)
        assert tap() is False

        def plain() -> None:
            with socket.create_connection((PEER4, 80), 3) as client:
                client.send(b"secret")

        tap = world.start_ready(sniff, 3.0, peer=True)
        world.run(plain)
        assert tap() is True, "the capture sees what is there to be seen"

    in_world(test)


def test_nobody_else_can_wear_a_units_mark(tmp_path: Path) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path)
        world.serve("127.0.0.1", 15001, transparent=True)
        for mark in (OUTBOUND | 7, OUTBOUND):
            seen = world.run(ask, PEER4, 80, HERE4, mark, 1.0, cgroup=world.cgroup("other"))
            assert not isinstance(seen, dict) or seen["mark"] == 0, "the proxy took it for a unit's"

    in_world(test)


def test_names_go_to_the_resolver_with_the_units_number(tmp_path: Path) -> None:
    def test(world: World) -> None:
        guarded(world, tmp_path)
        for address in (PEER4, "127.0.0.53"):
            assert world.run(ask_udp, address, 53, 0.5, cgroup=SLICE) == "timeout", "no resolver: closed"
        # the proxy's own test shows the whole way; here: the query arrives, marked
        server = world.start_ready(one_query, "127.0.0.1")
        world.run(ask_udp, PEER4, 53, 0.5, cgroup=SLICE)
        assert server() == OUTBOUND | 7

    in_world(test)


def one_query(ready: int, address: str) -> int:
    with listener(address, 15053, transparent=True, udp=True) as server:
        os.write(ready, b"ok")
        server.settimeout(5)
        _, ancillary, _, _ = server.recvmsg(2048, 256)
        return next(int.from_bytes(data, "little") for level, kind, data in ancillary if kind == socket.SO_MARK)


def babble(ready: int, address: str, port: int) -> None:
    """Datagrams as fast as it can, as long as it lives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        os.write(ready, b"ok")
        while True:
            with contextlib.suppress(OSError):  # refused, as it should
                client.sendto(b"babble", (address, port))


def hear(ready: int, address: str, port: int) -> list[bytes]:
    """All that arrives, up to ``end``."""
    with listener(address, port, udp=True) as server:
        os.write(ready, b"ok")
        heard = []
        while (word := server.recv(2048)) != b"end":
            heard.append(word)
        return heard


def say(address: str, port: int, *words: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for word in words:
            client.sendto(word, (address, port))


def test_a_packet_that_is_looked_at_while_its_ruleset_goes_stays_here(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """Rules of before and sets of after: between them a packet finds nothing in any set."""

    def test(world: World) -> None:
        bench = guarded(world, tmp_path, outbound=())
        heard = world.start_ready(hear, PEER4, 9002, peer=True)
        world.start_ready(babble, PEER4, 9002, cgroup=SLICE)
        for _ in range(rounds(100, 1000)):
            flush()
            assert bench.apply(plan(policy(outbound=()))) == ["ruleset: load"]
        world.run(say, PEER4, 9002, b"plain", b"end")
        assert heard() == [b"plain"]

    in_world(test)


def test_a_table_that_is_gone_is_seen_and_made_anew(tmp_path: Path) -> None:
    def test(world: World) -> None:
        bench = guarded(world, tmp_path)
        flush()
        assert Nft().state() is None
        assert bench.apply(plan(policy())) == ["ruleset: load"]

    in_world(test)
