"""`[[inbound.limit]]` through two real hosts: what may pass passes, what is over a limit is refused, told, counted."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from hostmesh.policy.validate import load
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.test_breaker import OPEN
from tests.mesh.told import total
from tests.mesh.twins import PACER, UNIT, Asked, Twins
from tests.mesh.world import POLICIES

pytestmark = pytest.mark.lab
HOLD = (Path(__file__).parent / "hold.py").read_text()
POLICY = """[service]
name = "twin"
[service.ports]
9090 = "http"
9091 = "tcp"
[[inbound.allow]]
from = ["guest", "shop"]
[[inbound.limit]]
"""
RULE = f"{POLICIES}/{UNIT}.toml:8"


@pytest.fixture(autouse=True, scope="module")
def _shop_may_call(pair: Twins) -> Iterator[None]:
    allowed = pair.w.policy("shop.service").replace("allow = [", 'allow = ["twin", ')
    with pair.w.changed_policy(pair.w.h1, "shop.service", allowed):
        yield


def limit(pair: Twins, text: str, before: str = "") -> None:
    """Put this limit in force on both hosts."""
    wanted = load({f"{UNIT}.toml": before + POLICY + text})[0].limits
    numbers = [(one.rule.place.line, one.requests, one.concurrent, one.per) for one in wanted]

    def is_known(host: Host) -> bool:
        known = in_force.unit(host, UNIT)
        limits = known["limits"] if known else []
        lines = [int(one["of"]["rule"].rpartition(":")[2]) for one in limits]
        return [
            (line, one["requests"], one["concurrent"], one["per"]) for line, one in zip(lines, limits, strict=True)
        ] == numbers

    for host in (pair.w.h1, pair.w.h2):
        pair.w.write_policy(host, UNIT, before + POLICY + text)
    for host in (pair.w.h1, pair.w.h2):
        wait_until(partial(is_known, host), f"{host.name}: {text!r} is in force", 20.0, 0.1)


def as_shop(pair: Twins, requests: int, connections: int = 4) -> Asked:
    """What comes of requests of the other caller."""
    argv = ["python3", "-c", PACER, "twin", str(requests), "1000", str(connections), "0"]
    return Asked(**json.loads(pair.w.shop(*argv, timeout=90).must().stdout))


def opened(pair: Twins, count: int) -> list[int]:
    """TCP connections of guest that were carried, and those that were reset."""
    told: list[int] = json.loads(pair.w.guest("python3", "-c", OPEN, str(count)).must().stdout)
    return told


@contextlib.contextmanager
def told_to(pair: Twins, what: str) -> Iterator[None]:
    """Both endpoints do this for the length of a ``with``."""
    for host in (pair.w.h1, pair.w.h2):
        pair.does(host, what)
    try:
        yield
    finally:
        for host in (pair.w.h1, pair.w.h2):
            pair.does(host, "200")


def test_what_is_over_a_limit_is_told(pair: Twins) -> None:
    h2 = pair.w.h2  # first of all: of many refusals the journal gets a few lines only
    with pair.only(h2):
        limit(pair, 'ports = [9090]\nrate = "6/h"\nburst = 1\n')
        counted, cursor = total(h2, "hostmesh_denied_total", rule=RULE), h2.journal_cursor()
        assert pair.ask(5).of("limited") == 4
        said = pair.w.guest("curl", "-sSi", "--max-time", "5", "http://twin/a").must().stdout.lower().splitlines()
    assert said[0] == "http/1.1 429 too many requests", said
    fields = dict(line.split(": ", 1) for line in said[1 : said.index("")])
    assert fields["x-hostmesh-error"] == "limited" and 590 <= int(fields["retry-after"]) <= 600, fields
    line = pair.w.denials(h2, after=cursor, HOSTMESH_UNIT=UNIT, HOSTMESH_FLAG="limited")[0]
    assert (line["HOSTMESH_RULE"], line["HOSTMESH_VERDICT"], line["HOSTMESH_KIND"]) == (RULE, "deny", "denied")
    grown = partial(total, h2, "hostmesh_denied_total", rule=RULE)
    wait_until(lambda: grown() == counted + 5, "every refusal is counted", 5.0, 0.1)
    explained = h2.exec(["hostmesh", "explain", "guest", "twin:9090", "GET", "/a"]).must().stdout
    assert f"{RULE}  at most 6/h, 1 at once, per caller" in explained, explained


@pytest.mark.parametrize("where", ["h1", "h2"], ids=["same host", "over the wire"])
def test_a_rate_lets_in_what_it_says(pair: Twins, where: str) -> None:
    with pair.only(pair.w.lab[where]):
        limit(pair, 'rate = "100/s"\nburst = 10\n')
        asked = pair.ask(2000, pace=400, connections=16)
        wanted = 10 + 100 * asked.lasted
        print(f"{where}: {asked.answers} in {asked.lasted:.2f} s, {wanted:.0f} may")
        assert asked.all == asked.of("200") + asked.of("limited") == asked.of(where) + asked.of("429")
        assert abs(asked.of("200") - wanted) <= 12, asked.answers


def test_per_caller_and_of_all(pair: Twins) -> None:
    with pair.only(pair.w.h2):
        limit(pair, 'rate = "10/h"\nburst = 10\n')
        assert [pair.ask(30).of("200"), as_shop(pair, 30).of("200"), pair.ask(5).of("200")] == [10, 10, 0]
        limit(pair, 'rate = "10/h"\nburst = 10\nper = "all"\n')
        assert [pair.ask(30).of("200"), as_shop(pair, 30).of("200")] == [10, 0]
        limit(pair, 'from = ["shop"]\nrate = "10/h"\nburst = 10\n')
        assert [pair.ask(30).of("200"), as_shop(pair, 30).of("200")] == [30, 10]


@pytest.mark.parametrize("where", ["h1", "h2"], ids=["same host", "over the wire"])
def test_one_caller_fills_its_share_and_another_passes(pair: Twins, where: str) -> None:
    host = pair.w.lab[where]
    with pair.only(host):
        limit(pair, "concurrent = 3\n")
        with told_to(pair, "after 1"), ThreadPoolExecutor() as threads:
            guest = threads.submit(pair.ask, 8, connections=8)
            shop = threads.submit(as_shop, pair, 8, connections=8)
            asked = [guest.result(), shop.result()]
        assert [(one.of("200"), one.of("limited")) for one in asked] == [(3, 5), (3, 5)], asked
        assert pair.ask(30, connections=2).of("200") == 30, "places come back"
        with told_to(pair, "hang"):
            left = [pair.w.guest("curl", "-sS", "--max-time", "0.3", "http://twin/").exit for _ in range(4)]
            assert left == [28, 28, 28, 0], "the application is still at what clients no longer wait for"
            host.systemctl("restart", UNIT)
        pair.wait_endpoints([host])
        wait_until(lambda: pair.ask(3, connections=3).of("200") == 3, "what broke off makes room as well", 5.0, 0.1)


@pytest.mark.parametrize("where", ["h1", "h2"], ids=["same host", "over the wire"])
def test_connections_of_tcp_are_reset_over_a_limit(pair: Twins, where: str) -> None:
    host = pair.w.lab[where]
    with pair.only(host):
        limit(pair, "ports = [9091]\nconcurrent = 2\n")
        cursor = host.journal_cursor()
        assert opened(pair, 5) == [2, 3]

        def told() -> list[dict[str, str]]:
            opened(pair, 5)
            return host.journal(after=cursor, HOSTMESH_UNIT=UNIT, HOSTMESH_FLAG="limited", HOSTMESH_RULE=RULE)

        # A unit has 200 lines of a kind in ten seconds: what was refused before may have used them up.
        line = wait_until(told, "a line says so", 15.0, 0.2)[0]
        assert (line["HOSTMESH_RULE"], line["HOSTMESH_PROTOCOL"]) == (RULE, "tcp")
        wait_until(lambda: opened(pair, 2) == [2, 0], "what ended makes room", 5.0, 0.1)
        limit(pair, 'ports = [9091]\nrate = "3/h"\nburst = 3\n')
        assert [opened(pair, 5), opened(pair, 1)] == [[3, 2], [0, 1]]


def test_a_saved_policy_keeps_what_was_counted(pair: Twins) -> None:
    h1, h2, stop = pair.w.h1, pair.w.h2, "/tmp/limits-stop"
    held = partial(pair.w.guest, "python3", "-c", HOLD, "twin", "9091", "2", "0", stop, timeout=60)
    with pair.only(h2), ThreadPoolExecutor() as threads:
        limit(pair, "ports = [9091]\nconcurrent = 2\n")
        before = int(h2.read("/run/twin/counts").split()[1])
        holding = threads.submit(held)
        try:
            wait_until(lambda: int(h2.read("/run/twin/counts").split()[1]) == before + 2, "two are open", 10.0, 0.05)
            limit(pair, "ports = [9091]\nconcurrent = 2\n", before="# moved by a line\n")
            assert opened(pair, 1) == [0, 1], "the two still count"
            limit(pair, "ports = [9091]\nconcurrent = 3\n")
            assert opened(pair, 2) == [1, 1], "and leave room for one"
        finally:
            h1.write(stop, "")
            holding.result().must()
        h1.exec(["rm", stop]).must()
        wait_until(lambda: opened(pair, 4) == [3, 1], "their places came back, once", 5.0, 0.1)
