"""What is measured once and not in rounds: memory at rest, with connections, with units; a policy change to effect."""

import fnmatch
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.contenders import Contender
from bench.processes import Unit
from bench.rounds import Figure
from bench.testbed import CALLER, MEMBERS, POLICY, Tell, Testbed
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.world import POLICIES

HELD_CONNECTIONS = 1000
FEW_UNITS, MANY_UNITS = 100, 1000
CHANGES = 10
CALLER_PROGRAM = "/opt/bench-caller.py"
MEMBER = "[Service]\nExecStart=/usr/bin/sleep infinity\n[Unit]\nDescription=a meshed unit among many\n"
MEMBER_POLICY = """
[service]
name = "member-{number}"
[service.ports]
{port} = "http"
[[inbound.allow]]
from = ["{caller}"]
methods = ["GET"]
"""
DENYING = POLICY.replace(f'"{CALLER}", ', "")

Memory = dict[str, Figure]


def at_rest(contenders: Sequence[Contender]) -> Memory:
    """MB of one proxy by contender, before any load; the spread is that of its two hosts."""
    return {f"{c.name} idle": _proxies(c) for c in contenders if c.proxies}


def with_connections(bed: Testbed, contenders: Sequence[Contender], tell: Tell) -> Memory:
    """The same with open keep-alive connections that were used once."""
    seen = {}
    for contender in contenders:
        if contender.proxies:
            name = f"{contender.name} {HELD_CONNECTIONS} connections"
            with _caller(bed, contender, "hold", contender.url, HELD_CONNECTIONS) as caller:
                _first_line(caller, "open")
                seen[name] = _proxies(contender)
                caller.communicate("", timeout=30)
            tell(f"{name}: {seen[name].high:.1f} MB")
    return seen


def with_units(bed: Testbed, tell: Tell) -> Memory:
    """hostmesh's on a host with many more meshed units, all running and with an identity: agent and proxy.

    The host's proxy and agent begin anew before, so that what the loads before left behind does not count.
    """
    host, seen = bed.h2, {}
    host.systemctl("restart", "hostmesh-proxy.service", "hostmeshd.service")
    host.write("/etc/systemd/system/member@.service", MEMBER)
    host.systemctl("daemon-reload")
    there = 0
    for count in (FEW_UNITS, MANY_UNITS):
        begun = time.monotonic()
        _more_units(host, range(there, count))
        there = count
        wait_until(lambda n=count: _with_identity(bed, host) >= n, f"{count} units have an identity", 600, 1.0)
        tell(f"{count} meshed units: after {time.monotonic() - begun:.0f} s")
        for name in ("hostmeshd", "hostmesh-proxy"):
            megabytes = Unit.of(host, f"{name}.service").rss_mb()
            seen[f"{name} {count} units"] = Figure.of([megabytes])
            tell(f"{name} {count} units: {megabytes:.1f} MB")
    return seen


def change_to_effect(bed: Testbed, contender: Contender) -> Figure:
    """Of hostmesh: ms from a policy file's rename to the first request that is judged by it; one is sent each ms."""
    took = []
    with _caller(bed, contender, "watch", contender.url, 60) as caller:
        _first_line(caller, "200 ")
        for number in range(CHANGES):
            denies = number % 2 == 0
            written = _replace(bed.h2, "bench-meshed.service", DENYING if denies else POLICY)
            sent = int(_first_line(caller, "403 " if denies else "200 ").split()[1])
            took.append((sent - written) / 1e6)
        caller.terminate()
    return Figure.of(took)


def _proxies(contender: Contender) -> Figure:
    return Figure.of([unit.rss_mb() for unit in contender.proxies])


def _caller(bed: Testbed, contender: Contender, verb: str, url: str, number: int) -> "subprocess.Popen[str]":
    bed.h1.write(CALLER_PROGRAM, (Path(__file__).parent / "caller.py").read_text())
    argv = ["python3", CALLER_PROGRAM, verb, url, str(number)]
    if contender.caller:
        argv = ["hostmesh", "run", "--unit", contender.caller, "--", *argv]
    return bed.h1.popen(argv, stdin=subprocess.PIPE)


def _first_line(caller: "subprocess.Popen[str]", begin: str) -> str:
    assert caller.stdout and caller.stderr
    line = caller.stdout.readline()
    if not line.startswith(begin):
        raise RuntimeError(f"the caller said {line!r}, not {begin!r}\n{caller.stderr.read()}")
    return line


def _replace(host: Host, unit: str, text: str) -> int:
    """When (CLOCK_MONOTONIC, ns) the file was renamed into place."""
    new = host.root / f"{POLICIES.lstrip('/')}/.{unit}.toml.new"
    new.write_text(text)
    new.rename(new.with_name(f"{unit}.toml"))
    return time.monotonic_ns()


def _more_units(host: Host, numbers: range) -> None:
    names = [MEMBERS.replace("*", str(number)) for number in numbers]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda some: host.systemctl("start", *some, timeout=300), _parts(names, 50)))
    for number, name in zip(numbers, names, strict=True):
        _replace(host, name, MEMBER_POLICY.format(number=number, port=20000 + number, caller=CALLER))


def _parts(names: Sequence[str], length: int) -> list[Sequence[str]]:
    return [names[begin : begin + length] for begin in range(0, len(names), length)]


def _with_identity(bed: Testbed, host: Host) -> int:
    return sum(1 for unit in bed.world.serials(host) if fnmatch.fnmatch(unit, MEMBERS))
