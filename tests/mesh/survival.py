"""What must be shown of surviving: processes of hostmesh are killed under a load that counts every error."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.shows import order
from tests.mesh.world import World

LOAD = (Path(__file__).parent / "load.py").read_text()
DAEMONS = ("hostmeshd.service", "hostmesh-controller.service")


class Load:
    """A load in flight, and afterwards what it told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.told: dict[str, object] = {}

    def number(self, key: str) -> float:
        """One of the figures that `load.py` tells."""
        return float(str(self.told[key]))


@contextlib.contextmanager
def load(w: World, *, least: int = 10_000, path: str = "/", host: str = "web") -> Iterator[Load]:
    """Requests from the meshed `shop` to a service (nginx) while the ``with`` body runs, at least so many in all."""
    stop = f"/run/load-{time.monotonic_ns()}"
    command = ["hostmesh", "run", "--unit", "shop", "--", "python3", "-c", LOAD, host, "80", path, "8", str(least), stop]
    with w.h1.popen(command) as process:
        running = Load(process)
        try:
            wait_until(lambda: _connections(w.h1), "the load runs", 10.0, 0.05)
            yield running
        finally:
            w.h1.exec(["touch", stop]).must()
            stdout, stderr = process.communicate(timeout=120)
            w.h1.exec(["rm", "-f", stop]).must()
    assert process.returncode == 0, stderr
    running.told = json.loads(stdout)


def _connections(host: Host) -> list[str]:
    return host.exec(["ss", "-Htn", "state", "established", "( dport = :80 )"]).must().stdout.splitlines()


def main_pid(host: Host, unit: str) -> int:
    """The main process of a unit, as the host sees it; 0 while there is none."""
    return int(host.exec(["systemctl", "show", "-P", "MainPID", unit]).must().stdout)


def kill(host: Host, unit: str) -> float:
    """kill -9 its main process; gives the time since the epoch."""
    pid = main_pid(host, unit)
    assert pid, f"{unit} isn't running"
    host.exec(["kill", "-9", str(pid)]).must()
    return time.time()


def control_dies(w: World) -> str:
    """The agents of both hosts and the controller killed -9 under load, and held down: no request fails"""
    kills = []
    with load(w) as running:
        for host, unit in ((w.h1, DAEMONS[0]), (w.h2, DAEMONS[0]), (w.h2, DAEMONS[1])):
            kills.append(kill(host, unit))
        for host, unit in ((w.h1, DAEMONS[0]), (w.h2, DAEMONS[0]), (w.h2, DAEMONS[1])):
            wait_until(lambda h=host, u=unit: main_pid(h, u), f"{host.name}: {unit} is back", 20.0, 0.05)
    assert running.number("begun") < min(kills) <= max(kills) < running.number("ended")
    assert running.number("requests") >= 10_000
    assert running.number("failed") == 0, running.told
    return f"{running.told['requests']} requests, 0 failed, slowest {running.told['slowest']} s; 3 kills within the load"


@contextlib.contextmanager
def controllers_dead(w: World) -> Iterator[None]:
    """No controller for the length of a ``with``."""
    w.h2.systemctl("kill", "--signal=SIGKILL", DAEMONS[1])
    w.h2.systemctl("stop", DAEMONS[1])
    try:
        yield
    finally:
        w.h2.systemctl("start", DAEMONS[1])


def serials(w: World, host: Host) -> dict[str, str]:
    """Serial number of each unit's SVID that is in force."""
    return {str(u["unit"]): str(u["svid_serial"]) for u in w.status(host)["units"] if u["svid_serial"]}  # type: ignore[attr-defined]


def proxy_dies(w: World) -> str:
    """The proxy of either host killed -9 with every controller dead: back by itself within 2 s, same identities, no plain text"""
    marker = f"confidential-{time.monotonic_ns()}"
    with controllers_dead(w), w.lab.capture("tcp or udp") as wire:
        before = [serials(w, host) for host in (w.h1, w.h2)]
        back = []
        with load(w, path=f"/?{marker}") as running:
            for host in (w.h1, w.h2):
                killed = kill(host, "hostmesh-proxy.service")
                wait_until(lambda p=f"try-{host.name}": order(w, p)["inventory"] == 200, f"{host.name}: traffic flows", 5.0, 0.02)
                back.append(time.time() - killed)
        after = wait_until(
            lambda: [s for s in [[serials(w, host) for host in (w.h1, w.h2)]] if s == before], "the same serials", 10.0, 0.1
        )[0]
    assert before == after and all(before)
    assert max(back) < 2.0, back
    assert running.number("longest_gap") < 2.0, running.told
    assert not wire.contains(marker.encode())
    return (
        f"back after {back[0]:.2f} and {back[1]:.2f} s (longest gap {running.told['longest_gap']} s); {len(before[0]) + len(before[1])} "
        f"serials unchanged; {running.told['failed']} of {running.told['requests']} requests failed; marker on the wire 0 times"
    )
