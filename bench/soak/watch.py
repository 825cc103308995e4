"""Turns a bed under load into samples: memory and descriptors of hostmesh, sockets, ports, conntrack."""

import collections
from dataclasses import dataclass

from bench.processes import Unit
from bench.testbed import Testbed
from tests.lab.host import Host

UNITS = (
    ("h1", "hostmesh-proxy.service"),
    ("h2", "hostmesh-proxy.service"),
    ("h1", "hostmeshd.service"),
    ("h2", "hostmeshd.service"),
    ("h2", "hostmesh-controller.service"),
)
FIRST_EPHEMERAL = 32768
HALF_OPEN = ("SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "LAST-ACK", "CLOSING")
Sample = dict[str, float]  # "h1/hostmesh-proxy rss_mb", "h1 ports", …


@dataclass(frozen=True)
class Watch:
    """What is looked at, all through a run: the processes that ran at its begin."""

    hosts: tuple[Host, ...]
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, bed: Testbed) -> "Watch":
        """Everything of hostmesh on both hosts."""
        hosts = {host.name: host for host in bed.hosts()}
        return cls(bed.hosts(), tuple(Unit.of(hosts[name], unit) for name, unit in UNITS))

    def sample(self) -> Sample:
        """Everything, now."""
        seen: Sample = {}
        for unit in self.units:
            seen[f"{unit.name} rss_mb"] = unit.rss_mb()
            seen[f"{unit.name} fds"] = unit.descriptors()
            seen[f"{unit.name} cpu_s"] = unit.cpu_seconds()
        for host in self.hosts:
            seen.update({f"{host.name} {what}": value for what, value in _sockets(host).items()})
        return seen


def _sockets(host: Host) -> dict[str, float]:
    """Of all the host's processes; `ports`: ephemeral ones in use, of whatever state but LISTEN."""
    local = _fields(host, 3, "sport", "ge", f":{FIRST_EPHEMERAL}")
    states = collections.Counter(_fields(host, 0, *(f"exclude {s}" for s in ("established", "time-wait", "listening"))))
    known = _known(host)
    return {
        "ports": len({address.rpartition(":")[2] for address in local}),
        "established": known["CurrEstab"],
        "time_wait": known["tw"],
        "orphaned": known["orphan"],
        "half_open": sum(states[state] for state in HALF_OPEN),
        "conntrack": known["conntrack"],
    }


def _fields(host: Host, column: int, *terms: str) -> list[str]:
    command = ["ss", "-Htan", *" ".join(terms).split()]
    return [line.split()[column] for line in host.exec(command).must().stdout.splitlines()]


def _known(host: Host) -> dict[str, int]:
    """What the kernel counts anyway: /proc/net/sockstat, /proc/net/snmp, conntrack's entries."""
    script = "grep ^TCP: /proc/net/sockstat; grep ^Tcp: /proc/net/snmp; cat /proc/sys/net/netfilter/nf_conntrack_count"
    sockstat, names, values, conntrack = host.exec(["sh", "-euc", script]).must().stdout.splitlines()
    words = sockstat.split()[1:]
    known = {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    known |= {name: int(v) for name, v in zip(names.split()[1:], values.split()[1:], strict=True)}
    return known | {"conntrack": int(conntrack)}
