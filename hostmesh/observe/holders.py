"""Turns ports into the processes that hold them, by /proc (proc_net_tcp: Documentation/networking/proc_net_tcp.rst)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hostmesh.plan.surroundings import Holder

_PROC = Path("/proc")
_STATES = {"tcp": "0A", "udp": "07"}  # listening; bound and not connected


def holders(wanted: Sequence[tuple[int, str]], proc: Path = _PROC) -> tuple[Holder, ...]:
    """One holder a port and protocol that is taken, whoever has it."""
    bound = _bound(proc)
    sockets = {place: bound[place] for place in wanted if place in bound}
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


def _bound(proc: Path) -> dict[tuple[int, str], set[str]]:
    """The sockets that listen (TCP) or are bound (UDP), by port and protocol."""
    found: dict[tuple[int, str], set[str]] = {}
    for protocol, bound in _STATES.items():
        for table in (proc / "net" / protocol, proc / "net" / f"{protocol}6"):
            for line in table.read_text().splitlines()[1:] if table.exists() else ():
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                if state == bound:
                    port = int(local.rpartition(":")[2], 16)
                    found.setdefault((port, protocol), set()).add(f"socket:[{inode}]")
    return found


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
