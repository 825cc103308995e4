"""What must be shown of revocation: told on one host, in force on all within a second, open connections included."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.lab.waiting import wait_until
from tests.mesh.shows import order
from tests.mesh.told import total
from tests.mesh.world import CALLERS, CONTROLLER, UNITS, World

AT_ONCE = 1.0
HEALED = 20.0
HOLD = """
import json, socket, time
held = socket.create_connection(("redis", 6379), 10)
held.sendall(b"PING\\r\\n")
assert held.recv(7) == b"+PONG\\r\\n"
print("held", flush=True)
held.settimeout(20)
try:
    end = held.recv(1)
except TimeoutError:
    print(json.dumps({"ended": None}))
except OSError as error:
    print(json.dumps({"ended": time.time(), "how": str(error)}))
else:
    print(json.dumps({"ended": time.time(), "how": "closed" if not end else "served"}))
"""


def unit(w: World) -> str:
    """A revoked unit is cut off and refused on every host, told and counted; taken back, it works again"""
    cursors = {host: w.lab[host].journal_cursor() for host in UNITS}
    before = _counted(w)
    with held(w) as told:
        w.h2.exec(["hostmesh", "controller", "revoke", "unit", "shop", "--reason", "its key was printed"]).must()
        deed = time.time()
        since = _cut_off(told(), deed)
    try:
        assert not w.shop("redis-cli", "-h", "redis", "ping").stdout.startswith("PONG")
        assert order(w, "7")["inventory"] == 200, "others are not touched"
        line = _line(w, cursors, "shop")
        wait_until(lambda: _counted(w) > before, "hostmesh_proxy_tls_failures_total counts it", 10.0, 0.2)
        listed = w.h2.exec(["hostmesh", "controller", "revoked"]).must().stdout
        assert "its key was printed" in listed
    finally:
        w.h2.exec(["hostmesh", "controller", "unrevoke", "unit", "shop"]).must()
    took = _works_again(w)
    return f"open connection ended {since * 1000:.0f} ms after the command; {line!r}; taken back: {took:.1f} s"


def removed_host(w: World) -> str:
    """A host that is removed, and does not know it: its SVIDs are refused at once; it joins again and all is well"""
    cursors = {CONTROLLER: w.h2.journal_cursor()}
    with held(w) as told:
        w.h2.exec(["hostmesh", "controller", "remove", "h1"]).must()
        deed = time.time()
        since = _cut_off(told(), deed)
    assert not w.shop("redis-cli", "-h", "redis", "ping").stdout.startswith("PONG")
    line = _line(w, cursors, "host h1")
    flags = [flag for unit in (*UNITS["h1"], *CALLERS) for flag in ("--unit", unit)]
    token = w.h2.exec(["hostmesh", "controller", "token", "h1", *flags]).must().stdout.strip()
    w.h1.exec(["hostmesh", "join", token]).must()
    took = _works_again(w)
    return f"open connection ended {since * 1000:.0f} ms after the command; {line!r}; joined again: {took:.1f} s"


@contextlib.contextmanager
def held(w: World) -> Iterator[Callable[[], dict[str, Any]]]:
    """A connection of shop (h1) to redis (h2), silent from now on. What is yielded tells how it ended, if it did."""
    with w.h1.popen(["hostmesh", "run", "--unit", "shop", "--", "python3", "-c", HOLD]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n", process.communicate()[1]

        def told() -> dict[str, Any]:
            said, trouble = process.communicate(timeout=30)
            assert said, trouble
            outcome: dict[str, Any] = json.loads(said)
            return outcome

        yield told


def _cut_off(told: dict[str, Any], deed: float) -> float:
    """Seconds from the deed to the connection's end."""
    assert told["ended"] is not None, "the connection stayed open"
    since: float = told["ended"] - deed
    assert since < AT_ONCE, f"ended {since:.2f} s after the command"
    return since


def _line(w: World, cursors: dict[str, str], *words: str) -> str:
    """The journal's line, on one of the hosts, of what was cut off."""

    def found() -> str | None:
        for host, cursor in cursors.items():
            for entry in w.lab[host].journal(after=cursor, HOSTMESH_RULE="builtin:revoked", HOSTMESH_KIND="wire"):
                if all(word in str(entry["MESSAGE"]) for word in words):
                    assert entry["HOSTMESH_PEER"].startswith("spiffe://")
                    return str(entry["MESSAGE"])
        return None

    return wait_until(found, f"a journal line with {words}", 10.0, 0.1)


def _counted(w: World) -> float:
    """Wire connections refused or ended because of a revocation, on both hosts."""
    return sum(total(w.lab[host], "hostmesh_proxy_tls_failures_total", reason="revoked") for host in UNITS)


def _works_again(w: World) -> float:
    began = time.monotonic()

    def works() -> bool:
        return w.shop("redis-cli", "-h", "redis", "ping").stdout.startswith("PONG")

    wait_until(works, "shop reaches redis again", HEALED, 0.2)
    wait_until(lambda: w.h1.exec(["curl", "-sf", "--max-time", "3", "http://127.0.0.1:8081/orders/7"]).ok,
               "orders reaches inventory again", HEALED, 0.2)  # fmt: skip
    return time.monotonic() - began
