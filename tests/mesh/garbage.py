"""What must be shown of garbage at every listener and in every file: nothing falls over, each is told.

Each row of the tables is a place, where it is thrown from, and how one is told.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import Host, Result
from tests.lab.waiting import wait_until
from tests.mesh import told
from tests.mesh.survival import load
from tests.mesh.world import POLICIES, World

THROW = (Path(__file__).parent / "throw.py").read_text()
DAEMONS = ("hostmeshd.service", "hostmesh-proxy.service", "hostmesh-controller.service")
Metrics = tuple[tuple[str, dict[str, str]], ...]
RULE: Metrics = (("hostmesh_kernel_refused_packets_total", {"rule": f"{POLICIES}/nginx.service.toml:no-plaintext"}),)
TLS: Metrics = (("hostmesh_proxy_tls_failures_total", {}),)
DNS: Metrics = tuple((f"hostmesh_proxy_dns_{what}_total", {}) for what in ("failed", "answered", "forwarded"))
ERRORS: Metrics = tuple(("hostmesh_requests_total", {"code": code, "destination": "web"}) for code in ("4xx", "error"))


@dataclass(frozen=True)
class Door:
    """A listener. ``by``: who throws; ``allowed``: what may come back; ``counted``: metrics, one of which grows."""

    name: str
    target: tuple[str | int, ...]
    by: Callable[[World, list[str]], Result]
    allowed: str
    counted: Metrics = ()
    says: tuple[str, ...] = ()
    """The line in the journal of h2 that tells it."""


def _root(w: World, argv: list[str]) -> Result:
    return w.h2.exec(argv, timeout=60.0)


def _nobody(w: World, argv: list[str]) -> Result:
    return w.h2.exec(["runuser", "-u", "nobody", "--", *argv], timeout=60.0)


def _outsider(w: World, argv: list[str]) -> Result:
    return w.outsider.exec(argv, timeout=60.0)


def _shop(w: World, argv: list[str]) -> Result:
    return w.as_unit("shop", argv, timeout=60.0)


GONE = r"closed|reset|silent"
H2 = "198.18.0.2"
DOORS = (
    Door("the agent's socket", ("unix", "/run/hostmesh/agent.sock"), _nobody, GONE),
    Door(
        "the proxy's socket",
        ("unix", "/run/hostmesh-proxy/control.sock"),
        _root,
        GONE + r'|....\{"type":"nack".*',
        says=("the agent's connection ended", "not understood"),
    ),
    Door("the proxy's socket, not as root", ("unix", "/run/hostmesh-proxy/control.sock"), _nobody, "refused"),
    Door("metrics", ("tcp", "127.0.0.1", 15020), _root, GONE + r"|HTTP/1.0 (400|405|431|505) .*|<!DOCTYPE HTML.*"),
    Door("outbound, not by way of the ruleset", ("tcp", "127.0.0.1", 15001), _root, GONE),
    Door("plain text, not by way of the ruleset", ("tcp", "127.0.0.1", 15006), _root, GONE),
    Door("the wire", ("tcp", H2, 15008), _outsider, GONE + r"|\x15\x03.*", counted=TLS),
    Door("the controller", ("tcp", H2, 15010), _outsider, GONE + r"|\x15\x03.*"),
    Door("enrolment", ("tcp", H2, 15011), _outsider, GONE + r"|\x15\x03.*"),
    Door("a meshed port", ("tcp", H2, 80), _outsider, "refused", counted=RULE),
    Door(
        "a service, as a unit that may call it",
        ("tcp", "web", 80),
        _shop,
        GONE + r"|HTTP/1.1 (400|431|505) .*|\x00\x00.\x04.*",  # or HTTP/2, which begins with SETTINGS
        counted=ERRORS,
    ),
    Door("DNS, not as a unit", ("udp", "127.0.0.1", 15053), _root, ".*"),
    Door("DNS, as a unit", ("udp", "198.18.0.9", 53), _shop, ".*", counted=DNS),
)


def _count(w: World, metrics: Metrics) -> float:
    """Over both hosts: whoever notices counts."""
    return sum(told.total(host, name, **labels) for host in (w.h1, w.h2) for name, labels in metrics)


@contextlib.contextmanager
def nothing_falls_over(w: World) -> Iterator[None]:
    """The same processes before and after, and not one request of a load that runs meanwhile fails."""
    before = [host.main_pid(unit) for host in (w.h1, w.h2) for unit in DAEMONS]
    with load(w, least=0, connections=2) as running:
        yield
    assert running.number("failed") == 0, running.told
    assert [host.main_pid(unit) for host in (w.h1, w.h2) for unit in DAEMONS] == before
    for host in (w.h1, w.h2):
        wait_until(lambda host=host: _is_well(w, host), f"{host.name} is well", 20.0, 0.2)


def _is_well(w: World, host: Host) -> bool:
    said = w.status(host)
    return bool(said["proxy"]["connected"] and said["controller"]["connected"] and not said["failures"])


def thrown_at(w: World, door: Door) -> tuple[str, list[str]]:
    """What came back, and what of it may not come back here. All of it is counted and told."""
    cursor, before = w.h2.journal_cursor(), _count(w, door.counted)
    said = door.by(w, ["python3", "-c", THROW, json.dumps([door.target])]).must().stdout
    [answers] = json.loads(said).values()
    strange = [
        f"{door.name}, {garbage}: {answer!r}"
        for garbage, answer in answers.items()
        if not re.fullmatch(door.allowed, answer, re.S)
    ]
    if door.counted:
        wait_until(lambda: _count(w, door.counted) > before, f"{door.name}: {door.counted} grows", 10.0, 0.2)
    if door.says:
        told.in_journal(w.h2, cursor, *door.says)
    kinds = sorted({re.split(r"[\s{]", answer)[0] or "bytes" for answer in answers.values()})
    return f"{door.name}: {len(answers)} kinds: {', '.join(kinds)}", strange


@dataclass(frozen=True)
class Full:
    """Files of h2 that are full of noise while ``daemon`` starts; what journal and status say; does it come up?"""

    daemon: str
    files: tuple[str, ...]
    says: tuple[tuple[str, ...], ...]
    starts: bool
    status: tuple[str, ...] = ()


STATE, CA = "/var/lib/hostmesh", "/var/lib/hostmesh-controller/ca/1"
FILES = (
    Full("hostmeshd", ("/etc/hostmesh/hostmesh.toml",), (("hostmesh.toml",),), starts=False),
    Full(
        "hostmeshd",
        (f"{STATE}/numbers.json",),
        (("numbers.json", "cannot be read"), ("remove it and reboot",)),
        starts=False,
    ),
    Full(
        "hostmeshd",
        (f"{STATE}/catalog.json", f"{STATE}/callers.json", f"{STATE}/sysctls.json", f"{STATE}/identity/host.key"),
        (
            ("catalog.json", "cannot be read", "remove it"),
            ("callers.json", "they come again"),
            ("sysctls.json", "cannot be read", "remove it"),
        ),
        starts=True,
        status=(f"{STATE}/identity", "join again"),
    ),
    Full(
        "hostmesh-controller",
        ("/etc/hostmesh/controller.toml",),
        (("controller.toml", "cannot be read"),),
        starts=False,
    ),
    Full("hostmesh-controller", (f"{CA}/intermediate.key",), ((CA, "restore it from its backup"),), starts=False),
    Full("hostmesh-controller", (f"{CA}/root.crt",), ((CA, "restore it from its backup"),), starts=False),
    Full("hostmesh-controller", ("/var/lib/hostmesh-controller/controller.db",), (("controller.db",),), starts=False),
)


@contextlib.contextmanager
def full_of_noise(host: Host, files: tuple[str, ...]) -> Iterator[None]:
    """Noise in place of what is there, for the length of a ``with``."""
    for file in files:
        keep = f"cp -a {file} {file}.kept 2>/dev/null || touch {file}.missing; head -c 4096 /dev/urandom > {file}"
        host.exec(["sh", "-euc", keep]).must()
    try:
        yield
    finally:
        for file in files:
            back = f"if test -e {file}.missing; then rm {file} {file}.missing; else mv {file}.kept {file}; fi"
            host.exec(["sh", "-euc", back]).must()


def file_of_noise(w: World, full: Full) -> str:
    """A daemon starts with noise in its files: told with the remedy, traffic goes on, then well again"""
    unit, cursor = f"{full.daemon}.service", w.h2.journal_cursor()
    with load(w, least=0, connections=2) as running:
        w.h2.systemctl("stop", unit)
        try:
            with full_of_noise(w.h2, full.files):
                w.h2.exec(["systemctl", "start", "--no-block", unit]).must()
                lines = [told.in_journal(w.h2, cursor, *words) for words in full.says]
                if full.starts:
                    wait_until(lambda: _active(w.h2, unit) == "active", f"{unit} is up all the same", 20.0, 0.1)
                else:
                    assert _active(w.h2, unit) != "active"
                if full.status:
                    lines.append(told.in_status(w, w.h2, *full.status))
                w.h2.systemctl("stop", unit)
        finally:
            w.h2.exec(["systemctl", "reset-failed", unit])
            w.h2.systemctl("start", unit)
    assert running.number("failed") == 0, running.told
    wait_until(lambda: _is_well(w, w.h2), "h2 is well", 30.0, 0.2)
    return "; ".join(line.partition("\n")[0][:120] for line in lines)


def _active(host: Host, unit: str) -> str:
    return host.exec(["systemctl", "is-active", unit]).stdout.strip()


def policy_of_noise(w: World) -> str:
    """A policy file of noise: refused whole, told by name; the one of before stays in force"""
    with load(w, least=0, connections=2) as running, full_of_noise(w.h2, (f"{POLICIES}/nginx.service.toml",)):
        line = told.in_status(w, w.h2, "cannot be read", "UTF-8")
    told.not_in_status(w, w.h2, "cannot be read")
    assert running.number("failed") == 0, running.told
    return line


def snapshot_of_noise(w: World) -> str:
    """The proxy starts with a snapshot of noise: told, left aside, and the agent sends the one in force"""
    unit, cursor = "hostmesh-proxy.service", w.h2.journal_cursor()
    w.h2.systemctl("stop", unit)
    with full_of_noise(w.h2, ("/var/lib/hostmesh-proxy/snapshot.json",)):
        w.h2.systemctl("start", unit)
        line = told.in_journal(w.h2, cursor, "snapshot.json", "left aside")
        wait_until(lambda: w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "web answers", 20.0, 0.1)
    w.h2.exec(["systemctl", "restart", unit]).must()
    wait_until(lambda: w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "web answers", 20.0, 0.1)
    wait_until(lambda: _is_well(w, w.h2), "h2 is well", 20.0, 0.2)
    return line
