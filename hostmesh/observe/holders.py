"""Turns ports into the processes that hold them, by /proc (proc_net_tcp: Documentation/networking/proc_net_tcp.rst)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hostmesh.plan.surroundings import Holder

_PROC = Path("/proc")
_STATES = {"tcp": "0A", "udp": "07"}  # listening; bound and not connected


def holders(wanted: Sequence[tuple[int, str]], proc: Path = _PROC) -> tuple[Holder, ...]:
    """One holder a port and protocol that is taken, whoever has it."""
    sockets = {place: inodes for place in wanted if (inodes := _inodes(proc, *place))}
    every = frozenset().union(*sockets.values()) if sockets else frozenset()
    processes = [(process, held & every) for process, held in _links(proc, "socket:[") if held & every]
    found = []
    for (port, protocol), inodes in sockets.items():
        who = [process for process, held in processes if held & inodes]
        names = {_read(process / "comm") for process in who} - {""}
        groups = {_read(process / "cgroup").rpartition("::")[2] for process in who} - {""}
        found.append(Holder(port, protocol, tuple(sorted(names)), tuple(sorted(groups))))
    return tuple(found)


def inotify_instances(proc: Path = _PROC) -> int:
    """How many root has: the limit counts by user."""
    return sum(len(held) for process, held in _links(proc, "anon_inode:inotify") if process.stat().st_uid == 0)


def _inodes(proc: Path, port: int, protocol: str) -> frozenset[str]:
    found = set()
    for family in ("", "6"):
        table = proc / "net" / f"{protocol}{family}"
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            (
                _,
                local,
                _,
                state,
                *_,
            ) = line.split()
            if state == _STATES[protocol] and int(local.rpartition(":")[2], 16) == port:
                found.add(f"socket:[{line.split()[9]}]")
    return frozenset(found)


def _links(proc: Path, start: str) -> Iterator[tuple[Path, frozenset[str]]]:
    """Every process with those of its descriptors whose name begins so."""
    for process in proc.iterdir():
        if process.name.isdigit():
            yield process, frozenset(_begin_with(process / "fd", start))


def _begin_with(folder: Path, start: str) -> Iterable[str]:
    try:
        for link in folder.iterdir():
            name = str(link.readlink())
            if name.startswith(start):
                yield name
    except (FileNotFoundError, ProcessLookupError):  # the process, or its descriptor, has gone
        return


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
