"""Plans applied to a real kernel: twice does nothing, stopped anywhere goes on, others' things stay as they are."""

import asyncio
import errno
import re
from pathlib import Path

import pytest
from nftables import Nftables
from pyroute2 import AsyncIPRoute

from hostmesh.apply.executor import StepFailed
from hostmesh.apply.netlink import Netlink
from hostmesh.names import UnitName
from hostmesh.plan.compile import empty_plan
from hostmesh.plan.elements import read_listing
from hostmesh.plan.redirect_sets import COUNTERS
from hostmesh.plan.routing import PolicyRule, Route
from tests.host.plans import NUMBER, OUTBOUND, SLICE, VIPS, Bench, plan, policy
from tests.host.world import CGROUP, HERE4, HERE6, World, ask, in_world

pytestmark = pytest.mark.kernel
REDIS = UnitName("redis-server.service")
FOREIGN = """
table inet filter {
	chain input { type filter hook input priority 0; policy accept;
		tcp dport 22 counter accept
	}
}
table ip docker {
	map names { type ipv4_addr : verdict; }
}
"""
WANTED = {
    "outbound": (("198.18.9.0/24", 123), ("198.18.0.0/16", 0), ("2001:2:9::/64", 0), ("2001:2:9::5/128", 53)),
    "plaintext": ("198.18.0.0/16", "198.18.7.0/24", "2001:2::/48", "203.0.113.7/32", "local"),
}


def nft(command: str) -> str:
    code, output, error = Nftables().cmd(command)
    assert code == 0, error
    return str(output)


def both(**options: object) -> list:  # type: ignore[type-arg]
    return [policy(**{**WANTED, **options}), policy(REDIS, 6379, plaintext=("203.0.113.0/24",))]  # type: ignore[arg-type]


def test_applied_twice_does_nothing(tmp_path: Path) -> None:
    def test(world: World) -> None:
        world.cgroup(SLICE)
        world.cgroup(REDIS.cgroup)
        bench = Bench(tmp_path)
        done = bench.apply(plan(*both()))
        assert "ruleset: load" in done
        assert len(done) == 3 + 4 + 4 + 1  # sysctls, routes, rules, ruleset
        assert bench.apply(plan(*both())) == []

    in_world(test)


def test_the_kernel_lists_what_was_rendered(tmp_path: Path) -> None:
    """Readable text in, the same text out: what an administrator sees with ``nft list`` is what the goldens show."""

    def test(world: World) -> None:
        world.cgroup(SLICE)
        world.cgroup(REDIS.cgroup)
        wanted = plan(*both())
        Bench(tmp_path).apply(wanted)
        assert wanted.table
        # nft 1.0.6 forgets the level of `socket cgroupv2` in `typeof`, and nowhere else.
        rendered = wanted.table.render().replace("typeof socket cgroupv2 level 2", "typeof socket cgroupv2 level 0")
        listed = nft("list table inet hostmesh")
        assert words(listed) == words(rendered)
        assert listed.split("chain output")[1] == rendered.split("chain output")[1]

    in_world(test)


def words(text: str) -> list[str]:
    """Its lines and elements in any order: the kernel keeps elements by hash."""
    return sorted(re.sub(r"elements = \{|,$| \}$", "", line).strip() for line in text.splitlines())


def test_stopped_after_any_step_the_next_run_ends_the_same(tmp_path: Path) -> None:
    def test(world: World) -> None:
        world.cgroup(SLICE)
        world.cgroup(REDIS.cgroup)
        bench, wanted = Bench(tmp_path), plan(*both())
        steps = len(bench.apply(wanted))
        end = nft("list table inet hostmesh"), asyncio.run(routing(bench))
        for stop in range(steps):
            bench.apply(empty_plan())
            bench.apply(wanted, stop_after=stop)
            bench.apply(wanted)
            assert (nft("list table inet hostmesh"), asyncio.run(routing(bench))) == end
            assert bench.apply(wanted) == []

    in_world(test)


async def routing(bench: Bench) -> tuple[frozenset[PolicyRule], frozenset[Route]]:
    return await bench.netlink.rules(), await bench.netlink.routes()


def test_one_more_unit_is_a_few_elements_and_counters_stay(tmp_path: Path) -> None:
    def test(world: World) -> None:
        world.cgroup(SLICE)
        world.cgroup(REDIS.cgroup)
        bench = Bench(tmp_path)
        bench.apply(plan(policy()))
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        assert world.run(ask, HERE4, 8080, peer=True)[0] == errno.ECONNREFUSED
        (done,) = bench.apply(plan(*both()))
        assert done.startswith("ruleset: units +1 -0; meshed +1 -0; listeners +2 -0; unrestricted +1 -1; egress4 +1")
        assert bench.nft.counters(COUNTERS)["refused_plaintext"] == {NUMBER: 1}
        assert bench.apply(plan(policy())) != []
        assert bench.apply(plan(policy())) == []
        assert bench.nft.counters(COUNTERS)["refused_plaintext"] == {NUMBER: 1}

    in_world(test)


def test_a_rule_that_somebody_removed_comes_back_with_the_counters_kept(tmp_path: Path) -> None:
    def test(world: World) -> None:
        world.cgroup(SLICE)
        bench = Bench(tmp_path)
        bench.apply(plan(policy()))
        world.serve("0.0.0.0", 8080, cgroup=SLICE)
        assert world.run(ask, HERE4, 8080, peer=True)[0] == errno.ECONNREFUSED
        nft("flush chain inet hostmesh first_in")
        assert bench.apply(plan(policy())) == ["ruleset: replace"]
        assert world.run(ask, HERE4, 8080, peer=True)[0] == errno.ECONNREFUSED
        assert bench.nft.counters(COUNTERS)["refused_plaintext"] == {NUMBER: 2}
        nft('add rule inet hostmesh output accept comment "let me through"')
        assert bench.apply(plan(policy())) == ["ruleset: replace"]
        nft("flush set inet hostmesh meshed")
        assert bench.apply(plan(policy())) == ["ruleset: meshed +1 -0"]

    in_world(test)


def test_a_slice_that_was_made_anew_is_taken_up_again(tmp_path: Path) -> None:
    def test(world: World) -> None:
        world.cgroup(SLICE)
        bench = Bench(tmp_path)
        bench.apply(plan(policy()))
        (CGROUP / SLICE).rmdir()
        with pytest.raises(StepFailed, match="ruleset"):
            bench.apply(plan(policy()))
        world.cgroup(SLICE)
        world.serve("127.0.0.1", 15001, transparent=True)
        assert bench.apply(plan(policy())) == ["ruleset: units +1 -1; meshed +1 -1; listeners +2 -2"]
        assert world.run(ask, "198.18.7.9", 80, cgroup=SLICE)["mark"] == OUTBOUND
        assert bench.apply(plan(policy())) == []

    in_world(test)


def test_others_are_as_they_were_and_removal_leaves_nothing(tmp_path: Path) -> None:
    def test(world: World) -> None:
        world.cgroup(SLICE)
        world.cgroup(REDIS.cgroup)
        nft(FOREIGN)
        Path("/proc/sys/net/ipv6/fwmark_reflect").write_text("1")
        before = nft("list ruleset"), asyncio.run(everything())
        bench = Bench(tmp_path)
        bench.apply(plan(*both()))
        assert nft("list table inet filter") in before[0]
        bench.apply(plan(policy()))
        bench.apply(empty_plan())
        assert (nft("list ruleset"), asyncio.run(everything())) == before
        assert bench.sysctls.get("net.ipv4.tcp_fwmark_accept") == "0"
        assert bench.sysctls.get("net.ipv6.fwmark_reflect") == "1"
        assert bench.apply(empty_plan()) == []

    in_world(test)


async def everything() -> list[str]:
    """All rules and routes, anybody's."""
    found = []
    async with AsyncIPRoute() as ip:
        for family in (2, 10):
            found += [str(rule["attrs"]) async for rule in await ip.get_rules(family=family)]
            # cached IPv6 entries and counters of use come and go
            found += [
                f"{route.get('RTA_DST')}/{route['dst_len']} {route.get('RTA_TABLE')} {route['type']} {route['proto']}"
                async for route in await ip.get_routes(family=family)
            ]
    return sorted(found)


def test_routes_and_addresses_are_read_as_written(tmp_path: Path) -> None:
    def test(_: World) -> None:
        bench, wanted = Bench(tmp_path), plan()
        bench.apply(wanted)
        rules, routes = asyncio.run(routing(bench))
        assert rules == set(wanted.rules)
        assert routes == set(wanted.routes)
        assert {route.destination for route in routes if route.kind == "unicast"} == set(VIPS)
        assert asyncio.run(Netlink().addresses()) == (HERE4, HERE6)
        # the host's address is another one now: so is the route's source
        moved = plan(addresses=("127.0.0.1", "::1"))
        assert len(bench.apply(moved)) == 2
        assert asyncio.run(routing(bench))[1] == set(moved.routes)

    in_world(test)


def test_a_thousand_units(tmp_path: Path) -> None:
    """One transaction; and no rule per unit."""

    def test(world: World) -> None:
        units = [UnitName(f"unit-{index}.service") for index in range(1000)]
        for unit in units:
            world.cgroup(unit.cgroup)
        bench = Bench(tmp_path)
        few, many = plan(policy(units[0])), plan(*(policy(unit) for unit in units))
        assert few.table
        assert many.table
        assert few.table.structure == many.table.structure
        bench.apply(few)
        bench.apply(many)
        state = bench.nft.state()
        assert state
        assert len(state.sets["units"]) == 1000
        assert bench.apply(many) == []

    in_world(test)


def test_a_listing_without_our_table() -> None:
    assert read_listing({"nftables": [{"metainfo": {}}]}) is None
