"""What `hostmesh doctor` has to know of a host, as values: what others set up, and what it offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Listing = tuple[Mapping[str, Any], ...]
"""Objects of libnftables' JSON (libnftables-json(5)): `{"chain": …}`, `{"rule": …}`; those of our table left out."""


@dataclass(frozen=True, slots=True)
class OtherRule:
    """A policy rule that is not ours, as ip-rule(8) has it. selective: it also looks at addresses or interfaces.

    everything: its table has a default route, so whatever comes to it goes its way.
    """

    version: int
    preference: int
    mark: int
    mask: int
    table: int
    inverted: bool = False
    selective: bool = False
    everything: bool = True


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a port: the processes that hold its socket, and their units (cgroup paths)."""

    port: int
    protocol: str
    processes: tuple[str, ...]
    cgroups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disk:
    """Where hostmesh writes. free_inodes: None where the file system has no such limit."""

    path: str
    free_bytes: int
    free_inodes: int | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Clock:
    """now: seconds since the epoch. container: the clock is the outer machine's. service: what keeps the time."""

    now: int
    synchronized: bool
    container: bool
    service: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A host. kernel: the first two numbers. unsupported: expressions of nftables that the kernel refused.

    legacy: tables of iptables-legacy, which nft does not list. reloads: files that nftables.service loads and that
    flush all tables. sysctls: those that `judge` asks for. applied: our ruleset is in force. pinned: so is the guard.
    hosts: the words of nsswitch's ``hosts:`` line. inotify: instances that root has, and may have. validity: of the
    host's SVID. versions: by package or process, those that are known.
    """

    kernel: tuple[int, int]
    systemd: int
    unsupported: tuple[str, ...]
    cgroup2: bool
    applied: bool
    pinned: bool
    listing: Listing
    legacy: tuple[str, ...]
    reloads: tuple[str, ...]
    rules: tuple[OtherRule, ...]
    holders: tuple[Holder, ...]
    sysctls: Mapping[str, str]
    hosts: tuple[str, ...]
    disks: tuple[Disk, ...]
    inotify: tuple[int, int]
    clock: Clock
    validity: tuple[int, int] | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is in the way. code: for programs. level: ``problem``, or ``risk`` where nothing is broken yet."""

    code: str
    level: str
    where: str
    what: str
    remedy: str
