"""Turns a unit into what its processes cost: CPU seconds, memory, descriptors, read from outside the lab host."""

from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import Host


@dataclass(frozen=True)
class Unit:
    """A running unit: ``name`` for people (``h1/hostmesh-proxy``), ``cgroup`` its folder as this machine sees it."""

    name: str
    cgroup: Path

    @classmethod
    def of(cls, host: Host, unit: str) -> "Unit":
        """The unit as it runs on a host now."""
        group = host.exec(["systemctl", "show", "-P", "ControlGroup", unit]).must().stdout.strip()
        if not group:
            raise RuntimeError(f"{host.name}: {unit} runs no process")
        return cls(f"{host.name}/{unit.removesuffix('.service')}", host.root / "sys/fs/cgroup" / group.lstrip("/"))

    def cpu_seconds(self) -> float:
        """All CPU time since its start, of processes that have ended too; cpu.stat is there without the controller."""
        stat = dict(line.split() for line in (self.cgroup / "cpu.stat").read_text().splitlines())
        return int(stat["usage_usec"]) / 1e6

    def pids(self) -> list[int]:
        """Its processes, by the pids of this machine."""
        return [int(pid) for pid in (self.cgroup / "cgroup.procs").read_text().split()]

    def rss_mb(self) -> float:
        """Resident memory of its processes, MB of 10^6 bytes."""
        return sum(_resident_kb(pid) for pid in self.pids()) * 1024 / 1e6

    def descriptors(self) -> int:
        """Open descriptors of its processes."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids())


def _resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
