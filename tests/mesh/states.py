"""What must be shown of a mesh that lacks a part: what is left says and takes nothing in plain text, and it is told.

Each state is entered with a unit that talks without end over connections that were open before.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.lab.waiting import wait_until
from tests.mesh.closed import NOT_THE_WIRE, TALKER, capture_sees, spoken
from tests.mesh.shows import order
from tests.mesh.world import CALLERS, UNITS, World

PROBER = (Path(__file__).parent / "prober.py").read_text()
AGENT, PROXY = "hostmeshd.service", "hostmesh-proxy.service"
NOTHING = {"silent", "ECONNREFUSED", "ECONNRESET", "EPERM", "EACCES"}
State = Callable[[World], AbstractContextManager[str]]


@contextlib.contextmanager
def proxies_down(w: World) -> Iterator[str]:
    """Both proxies stopped, and not restarted: their keys are gone too."""
    for host in (w.h1, w.h2):
        host.systemctl("stop", PROXY)
    wait_until(lambda: not w.status(w.h1)["proxy"]["connected"], "the agent knows", 5.0, 0.05)
    said = w.h1.exec(["hostmesh", "status"]).must().stdout
    told = re.search(r"proxy +not connected: .+", said)
    assert told, said
    yield told[0]
    for host in (w.h1, w.h2):
        host.systemctl("start", PROXY)


@contextlib.contextmanager
def agents_down(w: World) -> Iterator[str]:
    """Both agents stopped."""
    for host in (w.h1, w.h2):
        host.systemctl("stop", AGENT)
    said = w.h1.exec(["hostmesh", "status"])
    assert said.exit == 1 and "hostmeshd.service" in said.stderr, said
    yield said.stderr.splitlines()[0]
    for host in (w.h1, w.h2):
        host.systemctl("start", AGENT)


STATES: tuple[State, ...] = (agents_down, proxies_down)
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
    return all(units <= set(w.serials(w.lab[name])) for name, units in wanted.items())
