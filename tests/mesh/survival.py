"""What must be shown of surviving: processes of hostmesh are killed under a load that counts every error."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.shows import order
from tests.mesh.stoppable import stoppable
from tests.mesh.world import World

LOAD = (Path(__file__).parent / "load.py").read_text()
DAEMONS = ("hostmeshd.service", "hostmesh-controller.service")


class Load:
    """A load in flight, and afterwards what it told."""

    def __init__(self) -> None:
        self.told: dict[str, object] = {}

    def number(self, key: str) -> float:
        """One of the figures that `load.py` tells."""
        return float(str(self.told[key]))


@contextlib.contextmanager
def load(
    w: World,
    *,
    least: int = 10_000,
    path: str = "/",
    host: str = "web",
    connections: int = 8,
    unit: str = "shop",
    pause: float = 0.0,
) -> Iterator[Load]:
    """Requests of a meshed unit of h1 to a service (nginx) while the ``with`` body runs, at least so many in all.

    ``pause``: seconds from an answer to the connection's next request.
    """
    words = (host, "80", path, str(connections), str(least))
    command = ["hostmesh", "run", "--unit", unit, "--", "python3", "-c", LOAD, *words]
    with stoppable(w.h1, lambda stop: [*command, stop, str(pause)], timeout=120) as begun:
        running = Load()
        wait_until(lambda: _connections(w.h1), "the load runs", 10.0, 0.05)
        yield running
    running.told = json.loads(begun.stdout)


def _connections(host: Host) -> list[str]:
    return host.exec(["ss", "-Htn", "state", "established", "( dport = :80 )"]).must().stdout.splitlines()


def kill(host: Host, unit: str) -> float:
    """kill -9 its main process; gives the time since the epoch."""
    pid = host.main_pid(unit)
    assert pid, f"{unit} isn't running"
    host.exec(["kill", "-9", str(pid)]).must()
    return time.time()


def control_dies(w: World) -> str:
    """The agents of both hosts and the controller killed -9 under load: no request fails"""
    victims = [(w.h1, DAEMONS[0]), (w.h2, DAEMONS[0]), (w.h2, DAEMONS[1])]
    kills = []
    with load(w) as running:
        for host, unit in victims:
            kills.append(kill(host, unit))
        wait_until(lambda: all(host.main_pid(unit) for host, unit in victims), "all are back", 20.0, 0.05)
    assert running.number("begun") < min(kills) <= max(kills) < running.number("ended")
    assert running.number("requests") >= 10_000
    assert running.number("failed") == 0, running.told
    return (
        f"{running.told['requests']} requests, 0 failed, slowest {running.told['slowest']} s; 3 kills within the load"
    )


@contextlib.contextmanager
def controllers_dead(w: World) -> Iterator[None]:
    """No controller for the length of a ``with``."""
    w.h2.systemctl("kill", "--signal=SIGKILL", DAEMONS[1])
    w.h2.systemctl("stop", DAEMONS[1])
    try:
        yield
    finally:
        w.h2.systemctl("start", DAEMONS[1])


def proxy_dies(w: World) -> str:
    """Each proxy killed -9 with every controller dead: back by itself in 2 s, same identities, nothing in plain text"""
    marker = f"confidential-{time.monotonic_ns()}"
    with controllers_dead(w), w.lab.capture("tcp or udp") as wire:
        before = [w.serials(host) for host in (w.h1, w.h2)]
        back = []
        with load(w, path=f"/?{marker}") as running:
            for host in (w.h1, w.h2):
                killed = kill(host, "hostmesh-proxy.service")
                wait_until(lambda: order(w, "7")["inventory"] == 200, "traffic flows again", 5.0, 0.02)
                back.append(time.time() - killed)
        assert all(before), "no identities to begin with: it proves nothing"
        wait_until(lambda: [w.serials(host) for host in (w.h1, w.h2)] == before, "the same serials", 10.0, 0.1)
    assert max(back) < 2.0, back
    assert running.number("longest_gap") < 2.0, running.told
    assert not wire.contains(marker.encode())
    failed = f"{running.told['failed']} of {running.told['requests']} requests failed"
    return (
        f"back after {back[0]:.2f} and {back[1]:.2f} s; longest gap {running.told['longest_gap']} s; {failed}; "
        f"{sum(map(len, before))} serials unchanged; marker on the wire 0 times"
    )
