"""Turns a host of the mesh into one whose proxy is reloaded under load: its generations, their memory, the counts."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.stoppable import stoppable
from tests.mesh.told import total
from tests.mesh.world import World

PROXY, AGENT = "hostmesh-proxy.service", "hostmeshd.service"
STEADY = (Path(__file__).parent / "steady.py").read_text()
Counts = dict[str, dict[str, Any]]


class Steady:
    """A load of all protocols in flight, and afterwards what it told."""

    def __init__(self, host: Host, stop: str, process: "subprocess.Popen[str]") -> None:
        self.host, self.stop, self.process = host, stop, process
        self.told: Counts = {}

    def so_far(self) -> Counts:
        """What was counted until now."""
        if self.process.poll() is not None:
            raise AssertionError(f"the load ended: {self.process.communicate()}")
        counts: Counts = json.loads(self.host.exec(["cat", f"{self.stop}.counts"]).stdout or "{}")
        return counts

    def wait_for(self, more: int) -> None:
        """Wait until every client has asked so often from now on."""
        before = self.so_far()

        def done() -> bool:
            now = self.so_far()
            asked = [count["requests"] - before.get(name, {"requests": 0})["requests"] for name, count in now.items()]
            return bool(asked) and min(asked) >= more

        wait_until(done, f"{more} more requests of every client", 60.0, 0.1)

    def wait_for_all(self, least: int) -> None:
        """Wait until all clients together have asked so often."""

        def done() -> bool:
            return sum(count["requests"] for count in self.so_far().values()) >= least

        wait_until(done, f"{least} requests", 300.0, 0.5)

    def total(self, key: str) -> int:
        """The sum over all clients."""
        return sum(int(count[key]) for count in self.told.values())


@contextlib.contextmanager
def steady(w: World, *, pause: float = 0.01) -> Iterator[Steady]:
    """HTTP, redis and PostgreSQL from shop on h1 to h2 while the ``with`` body runs."""
    command = ["hostmesh", "run", "--unit", "shop", "--", "python3", "-c", STEADY, str(pause)]
    with stoppable(w.h1, lambda stop: [*command, stop]) as begun:
        running = Steady(w.h1, begun.stop, begun.process)
        running.wait_for(10)
        yield running
    w.h1.exec(["rm", "-f", f"{begun.stop}.counts"]).must()
    running.told = json.loads(begun.stdout)


def generations(host: Host) -> list[int]:
    """The processes of the proxy's unit, as the host sees them."""
    return sorted(int(pid) for pid in host.read(f"/sys/fs/cgroup/system.slice/{PROXY}/cgroup.procs").split())


def memory_kb(host: Host) -> dict[int, int]:
    """Resident memory of each of them; one that ends meanwhile is left out."""
    of = {}
    for pid in generations(host):
        lines = host.exec(["cat", f"/proc/{pid}/status"]).stdout.splitlines()
        resident = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
        if resident:
            of[pid] = resident[0]
    return of


def answered(host: Host, **flow: str) -> int:
    """HTTP requests with 2xx so far, by the host's /metrics."""
    return int(total(host, "hostmesh_requests_total", code="2xx", **flow))


def reload(host: Host) -> float:
    """Change the binary; gives how long it took."""
    before, begun = host.main_pid(PROXY), time.monotonic()
    host.systemctl("reload", PROXY)
    seconds, now = time.monotonic() - begun, host.main_pid(PROXY)
    assert now not in (before, 0), "the main process is the one of before"
    return seconds
