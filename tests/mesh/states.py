"""What must be shown of a mesh that lacks a part: what is left says and takes nothing in plain text, and it is told.

Each state is entered with a unit that talks without end over connections that were open before.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.closed import NOT_THE_WIRE, TALKER, capture_sees, spoken
from tests.mesh.shows import order
from tests.mesh.told import samples
from tests.mesh.world import CALLERS, UNITS, World

PROBER = (Path(__file__).parent / "prober.py").read_text()
AGENT, PROXY, CONTROLLER = "hostmeshd.service", "hostmesh-proxy.service", "hostmesh-controller.service"
CONFIG = "/etc/hostmesh/controller.toml"
LIFE_HOURS = 0.003  # 11 s
NOTHING = {"silent", "ECONNREFUSED", "ECONNRESET", "EPERM", "EACCES"}
State = Callable[[World], AbstractContextManager[str]]


@contextlib.contextmanager
def _stopped(unit: str, *hosts: Host) -> Iterator[None]:
    """The unit of these hosts stopped, for the length of a ``with``."""
    for host in hosts:
        host.systemctl("stop", unit)
    try:
        yield
    finally:
        for host in hosts:
            host.systemctl("start", unit)


@contextlib.contextmanager
def proxies_down(w: World) -> Iterator[str]:
    """Both proxies stopped, and not restarted: their keys are gone too."""
    with _stopped(PROXY, w.h1, w.h2):
        wait_until(lambda: not w.status(w.h1)["proxy"]["connected"], "the agent knows", 5.0, 0.05)
        said = w.h1.exec(["hostmesh", "status"]).must().stdout
        told = re.search(r"proxy +not connected: .+", said)
        assert told, said
        yield told[0]


@contextlib.contextmanager
def agents_down(w: World) -> Iterator[str]:
    """Both agents stopped."""
    with _stopped(AGENT, w.h1, w.h2):
        said = w.h1.exec(["hostmesh", "status"])
        assert said.exit == 1 and "hostmeshd.service" in said.stderr, said
        yield said.stderr.splitlines()[0]


@contextlib.contextmanager
def rulesets_flushed(w: World) -> Iterator[str]:
    """Every table gone, and nobody there who makes them anew."""
    cursor = w.h1.journal_cursor()
    with agents_down(w) as told:
        for host in (w.h1, w.h2):
            host.exec(["nft", "flush", "ruleset"]).must()
        yield told

    def repaired() -> list[dict[str, object]]:
        return [e for e in w.h1.journal(after=cursor) if "ruleset: load" in str(e.get("MESSAGE"))]

    wait_until(repaired, "the journal tells the repair", 10.0, 0.1)


@contextlib.contextmanager
def svids_over(w: World) -> Iterator[str]:
    """Every unit's SVID at its end, and no controller to renew it."""
    config = w.h2.read(CONFIG)
    w.h2.write(CONFIG, re.sub(r"unit_hours = .*", f"unit_hours = {LIFE_HOURS}", config))
    try:
        w.h2.systemctl("restart", CONTROLLER)
        for host in (w.h1, w.h2):
            host.systemctl("stop", PROXY)  # the SVIDs of a day go with it
            host.systemctl("start", PROXY)
        wait_until(lambda: all(0 < left < 60 for left in _left(w)) and _settled(w), "short SVIDs are there", 30.0, 0.1)
        w.h2.systemctl("stop", CONTROLLER)
        wait_until(lambda: all(left < 0 for left in _left(w)), "they are over", 15.0, 0.1)
        wait_until(lambda: order(w, "7")["inventory"] != 200, "open connections take no more calls", 15.0, 0.2)
        yield f"hostmesh_svid_expiry_seconds {max(_left(w)):.0f} s from now"
    finally:
        w.h2.write(CONFIG, config)
        w.h2.systemctl("restart", CONTROLLER)


def _left(w: World) -> list[float]:
    """Seconds that each SVID has left, as the metric that operators watch says."""
    ends = []
    for host in (w.h1, w.h2):
        found = samples(host, "hostmesh_svid_expiry_seconds")
        ends += [sample.value - time.time() for sample in found] or [0.0]
    return ends


STATES: tuple[State, ...] = (agents_down, proxies_down, rulesets_flushed, svids_over)
WORKS: tuple[State, ...] = (agents_down,)


def shut(w: World, state: State) -> str:
    """In this state, and on the way in and out: nothing in plain text, new connections and open ones"""
    capture_sees(w)
    talk = ["python3", "-c", TALKER, w.h2.ipv4, "6379", "9002", "word-of-shop"]
    with w.lab.capture(NOT_THE_WIRE) as wire, w.h1.unit(talk, slice="mesh-shop.slice"):
        wait_until(lambda: len(_open(w)) >= 10, "the talker's connections are open", 10.0, 0.05)
        with state(w) as told:
            outcomes = _tried(w)
        wait_until(lambda: order(w, "7")["inventory"] == 200 and _settled(w), "all is well again", 60.0, 0.2)
    assert not spoken(wire, w.h1, w.h2), spoken(wire, w.h1, w.h2)[:5]
    for name in ("unit", "unit, IPv6"):
        outcome = outcomes.pop(name)
        works = outcome in {"HTTP/1.1 200 OK", "HTTP/1.0 200 OK"}
        assert works is (state in WORKS), (name, outcome)
    unexpected = {name: outcome for name, outcome in outcomes.items() if outcome not in NOTHING}
    assert not unexpected, unexpected
    return f"told: {told}; {', '.join(f'{name}: {outcome}' for name, outcome in outcomes.items())}"


def _tried(w: World) -> dict[str, str]:
    """How it goes who talks in plain text: the unit to others, others to units."""
    v4, v6 = w.h2.ipv4, w.h2.ipv6
    by_unit = {
        "unit": ("tcp", v4, 80),
        "unit, IPv6": ("tcp", v6, 80),
        "unit to an address that it may not call": ("tcp", w.outsider.ipv4, 9005),
        "unit by UDP": ("udp", v4, 9005),
    }
    by_stranger = {
        "stranger to nginx": ("tcp", v4, 80),
        "stranger to nginx, IPv6": ("tcp", v6, 80),
        "stranger to orders": ("tcp", w.h1.ipv4, 8081),
    }
    by_neighbour = {"neighbour by loopback": ("tcp", "127.0.0.1", 80), "neighbour": ("tcp", v4, 80)}
    return {
        **_outcomes(w.h1.run_unit(_probe(by_unit), slice="mesh-shop.slice").must().stdout),
        **_outcomes(w.outsider.exec(_probe(by_stranger)).must().stdout),
        **_outcomes(w.h2.exec(_probe(by_neighbour)).must().stdout),
    }


def _probe(tries: dict[str, tuple[str, str, int]]) -> list[str]:
    return ["python3", "-c", PROBER, json.dumps(tries)]


def _outcomes(said: str) -> dict[str, str]:
    outcomes: dict[str, str] = json.loads(said)
    return outcomes


def _open(w: World) -> list[str]:
    return w.h1.exec(["ss", "-Htn", "state", "established", "( dport = :6379 )"]).must().stdout.splitlines()


def _settled(w: World) -> bool:
    """Has every unit an identity that holds?"""
    wanted = {"h1": {*UNITS["h1"], *CALLERS}, "h2": set(UNITS["h2"])}
    return all(units <= set(w.serials(w.lab[name])) for name, units in wanted.items()) and min(_left(w)) > 0
