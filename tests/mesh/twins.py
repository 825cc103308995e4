"""Endpoints of one service: `twin.service` on both hosts of the world (or on more), doing as told, and their caller."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from hostmesh.plan.snapshot import traffic_of
from hostmesh.policy.validate import load
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.extra import added
from tests.mesh.world import World

HERE = Path(__file__).parent
PACER = (HERE / "pacer.py").read_text()
UNIT = "twin.service"
SERVICE = """[Service]
Type=notify
ExecStart=/usr/bin/python3 -u /opt/backend.py
RuntimeDirectory=twin
ExecStartPre=/bin/sh -c 'echo 200 >/run/twin/does'
"""
POLICY = """[service]
name = "twin"
[service.ports]
9090 = "http"
9091 = "tcp"
[[inbound.allow]]
from = ["guest"]
[traffic]
"""


@dataclass
class Asked:
    """What came of requests."""

    answers: dict[str, int]
    by_key: dict[str, dict[str, int]]
    took: list[float]
    lasted: float

    def of(self, word: str) -> int:
        """Answers with this status, body or ``x-hostmesh-error``."""
        return sum(count for answer, count in self.answers.items() if word in answer.split())

    @property
    def all(self) -> int:
        """How many there were."""
        return sum(self.answers.values())


class Twins:
    """The endpoints, one on each of the hosts: two where nothing else is said."""

    def __init__(self, w: World, hosts: Sequence[Host]) -> None:
        self.w = w
        self.hosts = hosts
        self._stopped: list[Host] = []
        self._asked: list[tuple[float, int]] = []

    def treat(self, text: str, *, endpoints: int | None = None) -> None:
        """Put this `[traffic]` in force on all hosts, as the proxies know it, with so many endpoints (all)."""
        wanted = _said(msgspec.to_builtins(traffic_of(load({f"{UNIT}.toml": POLICY + text})[0])))
        count = len(self.hosts) if endpoints is None else endpoints
        for host in self.hosts:
            self.w.write_policy(host, UNIT, POLICY + text)
        for host in self.hosts:
            wait_until(partial(self._knows, host, wanted, count), f"{host.name}: {text!r} is in force", 20.0, 0.1)

    def _knows(self, host: Host, wanted: object, endpoints: int) -> bool:
        twin = self.w.services(host).get("twin")
        return bool(twin and len(twin["endpoints"]) == endpoints and _said(twin["traffic"]) == wanted)

    def ask(
        self, requests: int, *, pace: float = 1000, connections: int = 4, keys: int = 0, host: Host | None = None
    ) -> Asked:
        """Requests of guest, a unit of h1 (or of another host)."""
        self._asked.append((time.monotonic(), requests))
        argv = ["python3", "-c", PACER, "twin", str(requests), str(pace), str(connections), str(keys)]
        return Asked(**json.loads(self.w.as_unit("guest", argv, host=host, timeout=90).must().stdout))

    def recent(self) -> int:
        """Requests of late: those by which retries are paid for (ten seconds), and a little more."""
        return sum(count for begun, count in self._asked if time.monotonic() - begun < 20)

    @contextlib.contextmanager
    def only(self, host: Host) -> Iterator[None]:
        """The endpoint of the other host is stopped for the length of a ``with``."""
        with self.without(self.w.h2 if host is self.w.h1 else self.w.h1):
            yield

    @contextlib.contextmanager
    def without(self, host: Host) -> Iterator[None]:
        """The endpoint of this host is stopped for the length of a ``with``, beside others that are."""
        host.systemctl("stop", UNIT)
        self._stopped.append(host)
        self.wait_endpoints(self.running())
        try:
            yield
        finally:
            host.systemctl("start", UNIT)
            self._stopped.remove(host)
            self.wait_endpoints(self.running())

    def running(self) -> list[Host]:
        """The hosts whose endpoints are not stopped."""
        return [host for host in self.hosts if host not in self._stopped]

    def wait_endpoints(self, on: Sequence[Host]) -> None:
        """Wait until every proxy that may call knows the endpoints on these hosts, and no others."""
        names = sorted(host.name for host in on)

        def knows(host: Host) -> bool:
            return sorted(endpoint["host"] for endpoint in self.w.services(host)["twin"]["endpoints"]) == names

        for host in self.hosts:
            wait_until(partial(knows, host), f"{host.name} knows the endpoints on {names}", 10.0, 0.05)

    def told(self, cursor: str, text: str) -> None:
        """Wait for this in the journal of the caller's unit."""

        def found() -> bool:
            entries = self.w.h1.journal(unit="guest.service", after=cursor, HOSTMESH_KIND="breaker")
            return any(text in entry["MESSAGE"] for entry in entries)

        wait_until(found, f"guest's journal says {text!r}", 10.0, 0.1)

    def does(self, host: Host, what: str) -> None:
        """What the endpoint of a host does from now on."""
        host.write("/run/twin/does.new", what)
        host.exec(["mv", "/run/twin/does.new", "/run/twin/does"]).must()

    def requests(self, host: Host) -> int:
        """Those that reached the application of a host, so far."""
        return int(host.read("/run/twin/counts").split()[0])


def _said(traffic: Any) -> Any:  # noqa: ANN401 (JSON)
    """Without the places of the words."""
    if isinstance(traffic, dict):
        return {name: _said(value) for name, value in traffic.items() if name not in ("rule", "lines")}
    if isinstance(traffic, list):
        return [_said(one) for one in traffic]
    return traffic


@contextlib.contextmanager
def twins(w: World, *others: Host) -> Iterator[Twins]:
    """The endpoints, up and meshed, on the world's hosts and these others; gone after the ``with``."""
    hosts = (w.h1, w.h2, *others)
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(added(w, host, UNIT, SERVICE, POLICY, backend="backend.py"))
        made = Twins(w, hosts)
        made.treat("")
        yield made
    w.h2.exec(["hostmesh", "controller", "release", "twin"])
