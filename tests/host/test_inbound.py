"""Who reaches a meshed unit, on a real kernel: the proxy, if the unit itself listens; plain text is reset at once."""

import errno
import select
import time
from pathlib import Path

import pytest
from nftables import Nftables
from pyroute2 import IPRoute

from hostmesh.observe.nflog import NflogReader, Refusal
from hostmesh.plan.redirect import PREFIX_LISTENER, PREFIX_PLAINTEXT
from hostmesh.plan.redirect_sets import COUNTERS
from hostmesh.policy.model import Mode
from tests.host.plans import INBOUND, NUMBER, OUTBOUND, SETTINGS, SLICE, UNIT, Bench, plan, policy
from tests.host.world import HERE4, HERE6, PEER4, PEER6, World, ask, in_world

pytestmark = pytest.mark.kernel
FOREIGN4, FOREIGN6 = "198.18.200.9", "2001:2:200::9"


def meshed(world: World, tmp_path: Path, **options: object) -> Bench:
    world.cgroup(SLICE)
    bench = Bench(tmp_path)
    bench.apply(plan(policy(**options)))  # type: ignore[arg-type]
    return bench


def refusals(reader: NflogReader, count: int) -> list[Refusal]:
    found: list[Refusal] = []
    deadline = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        if select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            found += reader.read()
    return found


@pytest.mark.parametrize("strict", [0, 1])
@pytest.mark.parametrize("bound", ["wildcard", "loopback"])
def test_the_proxy_delivers_with_the_clients_address(tmp_path: Path, bound: str, strict: int) -> None:
    """With a strict reverse path filter too (RFC 3704), which some distributions set."""

    def test(world: World) -> None:
        meshed(world, tmp_path)
        for link in ("all", "lo", "wire"):
            Path(f"/proc/sys/net/ipv4/conf/{link}/rp_filter").write_text(str(strict))
        any4, any6 = ("0.0.0.0", "::") if bound == "wildcard" else ("127.0.0.1", "::1")
        world.serve(any4, 8080, cgroup=SLICE)
        world.serve(any6, 8080, cgroup=SLICE)
        at4, at6 = (HERE4, HERE6) if bound == "wildcard" else ("127.0.0.1", "::1")
        for address, source in ((at4, FOREIGN4), (at6, FOREIGN6), (at4, PEER4), (at4, "127.0.0.1")):
            seen = world.run(ask, address, 8080, source, INBOUND)
            assert isinstance(seen, dict), (address, source, seen)
            assert (seen["peer"], seen["to"]) == (source, (address, 8080))

    in_world(test)


def test_somebody_else_who_binds_the_port_gets_nothing(tmp_path: Path) -> None:
    def test(world: World) -> None:
        bench = meshed(world, tmp_path)
        reader = NflogReader(SETTINGS.nflog_group)
        world.serve("0.0.0.0", 8080, cgroup=world.cgroup("system.slice/thief.service"))
        world.serve("::", 8080, cgroup="")
        for address, source in ((HERE4, FOREIGN4), (HERE6, FOREIGN6)):
            code, seconds = world.run(ask, address, 8080, source, INBOUND)
            assert code == errno.ECONNREFUSED
            assert seconds < 0.5
        seen = refusals(reader, 2)
        assert {(r.prefix, r.mark, r.destination_port) for r in seen} == {(PREFIX_LISTENER, NUMBER, 8080)}
        assert bench.nft.counters(COUNTERS)["refused_listener"] == {NUMBER: 2}

    in_world(test)


def test_another_units_mark_opens_nothing(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path)
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        assert world.run(ask, HERE4, 8080, FOREIGN4, INBOUND + 1)[0] == errno.ECONNREFUSED

    in_world(test)


def test_a_unit_cannot_pass_for_the_proxy(tmp_path: Path) -> None:
    """A meshed unit with CAP_NET_RAW that marks its own connection as delivered: it goes to the proxy, or nowhere."""

    def test(world: World) -> None:
        meshed(world, tmp_path)
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        world.serve("127.0.0.1", 15001, transparent=True)
        inner = world.cgroup(f"{SLICE}/worker.service")
        for source in (FOREIGN4, "127.0.0.1"):
            seen = world.run(ask, "127.0.0.1", 8080, source, INBOUND, cgroup=inner)
            assert not isinstance(seen, dict) or seen["mark"] == OUTBOUND

    in_world(test)


def test_no_listener_is_said_at_once_and_is_no_refusal(tmp_path: Path) -> None:
    def test(world: World) -> None:
        bench = meshed(world, tmp_path)
        for address, source in ((HERE4, FOREIGN4), (HERE6, FOREIGN6), ("127.0.0.1", FOREIGN4)):
            code, seconds = world.run(ask, address, 8080, source, INBOUND)
            assert code == errno.ECONNREFUSED, (address, code)
            assert seconds < 0.5
        assert bench.nft.counters(COUNTERS)["refused_listener"] == {}

    in_world(test)


def test_plain_text_is_reset_at_once_and_logged(tmp_path: Path) -> None:
    def test(world: World) -> None:
        bench = meshed(world, tmp_path)
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        world.serve("::", 8080, cgroup=f"{world.cgroup(SLICE + '/web.service')}")
        reader = NflogReader(SETTINGS.nflog_group)
        cases = [(HERE4, True), (HERE6, True), (HERE4, False), (HERE6, False), ("127.0.0.1", False), ("::1", False)]
        for address, peer in cases:
            code, seconds = world.run(ask, address, 8080, cgroup="", peer=peer)
            assert code == errno.ECONNREFUSED, (address, peer, code)
            assert seconds < 0.5
        seen = refusals(reader, len(cases))
        assert {(r.prefix, r.mark, r.destination_port) for r in seen} == {(PREFIX_PLAINTEXT, NUMBER, 8080)}
        assert {r.source for r in seen} == {PEER4, PEER6, HERE4, HERE6, "127.0.0.1", "::1"}
        assert bench.nft.counters(COUNTERS)["refused_plaintext"] == {NUMBER: len(cases)}

    in_world(test)


def test_an_unmeshed_units_ports_are_as_they_were(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path)
        world.serve("0.0.0.0", 8080, cgroup=world.cgroup("system.slice/other.service"))
        assert world.run(ask, HERE4, 8080, peer=True)["peer"] == PEER4
        assert world.run(ask, "127.0.0.1", 8080)["peer"] == "127.0.0.1"

    in_world(test)


def test_plain_text_callers_that_policy_names_go_to_the_proxy(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path, plaintext=(f"{PEER4}/32", "198.18.0.0/16", f"{PEER6}/128", "local"))
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        proxy = world.cgroup("system.slice/proxy.service")
        for address in ("127.0.0.1", "::1"):
            world.serve(address, 15006, cgroup=proxy, transparent=True)
        for address, peer in ((HERE4, True), (HERE6, True), (HERE4, False), ("127.0.0.1", False), ("::1", False)):
            seen = world.run(ask, address, 8080, peer=peer)
            assert isinstance(seen, dict), (address, peer, seen)
            assert (seen["to"], seen["mark"], seen["cgroup"]) == ((address, 8080), 0, f"/{proxy}")
        # a port of the unit that the rule does not name
        world.serve("0.0.0.0", 8081, cgroup=SLICE)
        assert world.run(ask, HERE4, 8081, peer=True)[0] == errno.ECONNREFUSED

    in_world(test)


def test_without_the_proxy_even_named_callers_do_not_reach_the_unit(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path, plaintext=("198.18.0.0/16",))
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        assert world.run(ask, HERE4, 8080, "", 0, 1.5, peer=True)[0] == "timeout"

    in_world(test)


def test_under_audit_every_plain_text_caller_goes_to_the_proxy(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path, mode=Mode.AUDIT, plaintext=(f"{PEER4}/32",))
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        proxy = world.cgroup("system.slice/proxy.service")
        for address in ("127.0.0.1", "::1"):
            world.serve(address, 15006, cgroup=proxy, transparent=True)
        for address, peer in ((HERE4, True), (HERE6, True), ("127.0.0.1", False)):
            assert world.run(ask, address, 8080, peer=peer)["cgroup"] == f"/{proxy}"

    in_world(test)


def test_traffic_that_is_only_forwarded_is_left_alone(tmp_path: Path) -> None:
    """A guest behind this host with the same port: the rules are for this host's own addresses."""

    def test(world: World) -> None:
        meshed(world, tmp_path, plaintext=("198.18.0.0/16",))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with IPRoute() as ip:
            ip.route("add", dst="198.18.99.0/24", gateway=PEER4)
        counter = "table inet other { chain f { type filter hook forward priority 0; tcp dport 8080 counter; }; }"
        assert Nftables().cmd(counter)[0] == 0
        for address in ("127.0.0.1", "::1"):
            world.serve(address, 15006, transparent=True)
        answer = world.run(ask_by_way_of, HERE4, "198.18.99.99", peer=True)
        assert not isinstance(answer, dict), "the proxy took a connection that was not for this host"
        assert "counter packets 0 " not in Nftables().cmd("list table inet other")[1], "nothing was forwarded"
        assert isinstance(world.run(ask_by_way_of, HERE4, HERE4, peer=True), dict)

    in_world(test)


def ask_by_way_of(gateway: str, address: str) -> object:
    """Connect to an address behind the gateway."""
    with IPRoute() as ip:
        ip.route("replace", dst="198.18.99.0/24", gateway=gateway)
    return ask(address, 8080, timeout=1.0)


def test_a_units_call_to_itself_goes_by_the_proxy(tmp_path: Path) -> None:
    def test(world: World) -> None:
        meshed(world, tmp_path)
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        world.serve("127.0.0.1", 15001, transparent=True)
        assert world.run(ask, "127.0.0.1", 8080, cgroup=SLICE)["mark"] == OUTBOUND
        assert UNIT.cgroup == SLICE

    in_world(test)


def test_a_mark_that_comes_from_the_network_opens_nothing(tmp_path: Path) -> None:
    """Some other program's table marks what comes in with what happens to be our mark."""
    other = f"""table inet other {{
        chain early {{ type filter hook prerouting priority raw; policy accept;
            iifname "wire" tcp dport 8080 meta mark set {INBOUND:#x}
        }}
    }}"""

    def test(world: World) -> None:
        meshed(world, tmp_path)
        code, _, error = Nftables().cmd(other)
        assert code == 0, error
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        assert world.run(ask, HERE4, 8080, peer=True)[0] == errno.ECONNREFUSED

    in_world(test)
