"""What must be shown of failing closed: whatever is undone, a meshed unit says and takes nothing in plain text."""

import contextlib
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.capture import Capture
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.stoppable import stoppable
from tests.mesh.survival import load
from tests.mesh.world import World

FOREIGN, KNOCKER, TALKER = (
    (Path(__file__).parent / f"{name}.py").read_text() for name in ("foreign", "knocker", "talker")
)
DEEDS = 10  # that foreign.py knows
TALKERS = {"meshed": ("mesh-shop.slice", 9001, 9002), "plain": ("system.slice", 9003, 9004)}
TALKER_NAMES = [f"talker-{name}.service" for name in TALKERS]
TALKER_UNIT = """
[Unit]
DefaultDependencies=no
[Service]
Slice={slice}
ExecStart=/usr/bin/python3 /opt/talker.py {host} {tcp} {udp} word-of-{name}
Restart=always
TimeoutStopSec=3
[Install]
WantedBy=sysinit.target
"""
NOT_THE_WIRE = "(tcp or udp) and not port 15008 and not tcp port 15010"


def foreign_flushes(w: World, rounds: int, within_ms: float) -> str:
    """Table, chains, elements, rules, routes taken away on both hosts under load: repaired; no packet in plain text"""
    capture_sees(w)
    times: dict[str, list[float]] = {}
    cursors = {host.name: host.journal_cursor() for host in (w.h1, w.h2)}
    targets = (f"{w.h2.ipv4}:80", f"{w.h2.ipv6}:80", f"{w.h1.ipv4}:8081", f"{w.h2.ipv4}:15008")
    with (
        w.lab.capture(NOT_THE_WIRE) as wire,
        knocking(w.outsider, *targets) as knocked,
        benchmark(w),
        load(w, least=100, host=w.h2.ipv4) as running,
    ):
        for host, first in ((w.h1, 0), (w.h2, DEEDS // 2)):
            for deed, each in undone(host, first, rounds // 2).items():
                times.setdefault(deed, []).extend(each)
    assert not spoken(wire, w.h1, w.h2), spoken(wire, w.h1, w.h2)[:5]
    assert knocked.pop(targets[-1])["connected"], "the knocks do not arrive: they prove nothing"
    assert not any(count["connected"] for count in knocked.values()), knocked
    all_times = [ms for each in times.values() for ms in each]
    assert len(all_times) == rounds // 2 * 2
    assert running.number("failed") == 0, running.told
    for host in (w.h1, w.h2):
        wait_until(
            lambda host=host: len(_repairs(host, cursors[host.name])) >= rounds // 2,
            f"{host.name} tells {rounds // 2} repairs",
            10.0,
            0.1,
        )
    assert max(all_times) < within_ms, times
    slowest = ", ".join(f"{deed} {max(each):g}" for deed, each in times.items() if each)
    return (
        f"{len(all_times)} repairs: median {statistics.median(all_times):.0f} ms, max {max(all_times):.0f} ms; "
        f"{running.told['requests']} requests, 0 failed; {knocks(knocked)}; 0 packets in plain text; slowest: {slowest}"
    )


def _repairs(host: Host, cursor: str) -> list[str]:
    """What was done in each run that had something to do."""
    lines = (str(entry.get("MESSAGE")) for entry in host.journal(after=cursor))
    return [line for line in lines if "in force after" in line]


def capture_sees(w: World) -> None:
    """A plain process's packets are seen as such: else no capture proves anything."""
    with w.lab.capture(NOT_THE_WIRE) as seen:
        w.h1.exec(["nc", "-z", "-w", "1", w.h2.ipv4, "80"])
    assert spoken(seen, w.h1), "a plain process's packets are not seen"


def spoken(wire: Capture, *hosts: Host) -> list[Any]:
    """What these hosts sent, but for resets, which refuse."""
    from scapy.layers.inet import TCP  # noqa: PLC0415 (takes a second to load)

    macs = {host.mac for host in hosts}
    return [p for p in wire.packets() if p.src in macs and not (TCP in p and p[TCP].flags.R)]


@contextlib.contextmanager
def knocking(host: Host, *targets: str) -> Iterator[dict[str, Counter[str]]]:
    """Connections in plain text, over and over, from a host; afterwards how they were answered, by target."""
    counts = dict[str, Counter[str]]()
    with stoppable(host, lambda stop: ["python3", "-c", KNOCKER, stop, *targets], timeout=30) as running:
        yield counts
    counts.update({target: Counter(count) for target, count in json.loads(running.stdout).items()})


def knocks(counts: dict[str, Counter[str]]) -> str:
    """In words."""
    total = sum(counts.values(), Counter[str]())
    return f"{total.total()} knocks in plain text: " + ", ".join(f"{total[k]} {k}" for k in ("refused", "silent"))


def undone(host: Host, first: int, rounds: int) -> dict[str, list[float]]:
    """Undo so many things on a host, from the first on; how long each took to come back."""
    said = host.exec(["python3", "-c", FOREIGN, str(first), str(rounds)], timeout=600).must().stdout
    times: dict[str, list[float]] = json.loads(said)
    return times


@contextlib.contextmanager
def benchmark(w: World) -> Iterator[None]:
    """Four connections of redis, opened once and never again, that must outlive the ``with`` body."""
    command = ["redis-benchmark", "-h", w.h2.ipv4, "-c", "4", "-l", "-q", "-t", "set"]
    with w.h1.popen(["hostmesh", "run", "--unit", "shop", "--", *command]) as process:
        try:
            yield
            assert process.poll() is None, f"a connection broke: {process.communicate()}"
        finally:
            w.h1.systemctl("kill", "mesh-shop.slice")


def reboots(w: World, rounds: int) -> str:
    """Rebooted by the plug and in order: a meshed unit that talks and listens from the first moment is not heard"""
    ports = {name: tcp for name, (_, tcp, _) in TALKERS.items()}
    seen, knocked_on = [], Counter[str]()
    with talkers(w):
        for count in range(rounds):
            targets = {f"{address}:{port}": name for name, port in ports.items() for address in (w.h1.ipv4, w.h1.ipv6)}
            with (
                w.lab.capture("udp portrange 9001-9004 or tcp portrange 9001-9004") as wire,
                knocking(w.outsider, *targets) as knocked,
            ):
                host = w.lab.reboot("h1", orderly=count % 2 == 1)
                for name in TALKERS:
                    assert host.exec(["systemctl", "is-active", f"talker-{name}.service"]).ok
                wait_until(lambda: "shop.service" in w.serials(w.h1), "the meshed unit has its identity", 20.0, 0.1)
                w.h1.systemctl("stop", *TALKER_NAMES)  # a capture ends when it is quiet
            words = _words(wire, w.h1)
            assert words["plain"], "the plain talker is not seen: the capture proves nothing"
            assert not words["meshed"], f"boot {count}: {words['meshed']} packets of the meshed unit in plain text"
            for target, name in targets.items():
                assert (knocked[target]["connected"] > 0) is (name == "plain"), (count, target, knocked)
                if name == "meshed":
                    knocked_on.update(knocked[target])
            seen.append(words["plain"])
    return (
        f"{rounds} reboots: 0 packets of the meshed talker, {min(seen)} to {max(seen)} of the plain one beside it; "
        f"{knocks({'meshed': knocked_on})}"
    )


@contextlib.contextmanager
def talkers(w: World) -> Iterator[None]:
    """A meshed and a plain unit of h1 that talk in plain text from the first moment of each boot."""
    w.h1.write("/opt/talker.py", TALKER)
    for name, (slice_name, tcp, udp) in TALKERS.items():
        text = TALKER_UNIT.format(slice=slice_name, host=w.outsider.ipv4, tcp=tcp, udp=udp, name=name)
        w.h1.write(f"/etc/systemd/system/talker-{name}.service", text)
    w.h1.systemctl("daemon-reload")
    w.h1.systemctl("enable", "--now", *TALKER_NAMES)
    try:
        yield
    finally:
        w.h1.systemctl("disable", "--now", *TALKER_NAMES)
        w.h1.exec(["rm", *(f"/etc/systemd/system/{name}" for name in TALKER_NAMES)]).must()
        w.h1.systemctl("daemon-reload")


def _words(wire: Capture, host: Host) -> dict[str, int]:
    """How many packets each talker of the host sent, but for resets."""
    from scapy.layers.inet import TCP, UDP  # noqa: PLC0415

    ports = [
        {int(layer.sport), int(layer.dport)}
        for packet in spoken(wire, host)
        for layer in [packet[TCP] if TCP in packet else packet[UDP]]
    ]
    return {name: sum(bool({tcp, udp} & each) for each in ports) for name, (_, tcp, udp) in TALKERS.items()}
