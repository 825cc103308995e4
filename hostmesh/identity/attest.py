"""Turns a host's grants and a unit's name into the unit's identity, or into the reason why not.

A host may run the units that it was granted, by name or by glob (``postgresql@*.service``), and no others: a stolen
host is worth its own units, not the mesh.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from hostmesh.errors import HostmeshError
from hostmesh.names import BadName, SpiffeId, UnitName


class NotGranted(HostmeshError):
    """A host asked for a unit that it was not granted."""


def check_grant(pattern: str) -> str:
    """A grant as a person types it: ``nginx`` means ``nginx.service``; ``*`` and ``?`` are globs, brackets are not."""
    if any(char in pattern for char in "[]"):
        raise BadName(f"{pattern!r} cannot be granted", "globs are * and ?, for example: postgresql@*.service")
    if not pattern.endswith((".service", ".socket", ".scope")):
        pattern += ".service"
    UnitName(pattern.replace("*", "x").replace("?", "x"))
    return pattern


def may_run(grants: Iterable[str], unit: UnitName) -> bool:
    """Whether one of the grants covers the unit."""
    return any(fnmatchcase(unit.full, pattern) for pattern in grants)


def may_run_of(grants: Iterable[str], owner: str) -> bool:
    """Whether one of the grants covers a unit of this name, or an instance of the template of this name."""
    return any(fnmatchcase(owner, pattern.rpartition(".")[0].partition("@")[0]) for pattern in grants)


def identity_of(trust_domain: str, host: str, grants: Iterable[str], unit: UnitName) -> SpiffeId:
    """The identity of a unit on a host that may run it."""
    if not may_run(grants, unit):
        raise NotGranted(
            f"host {host} may not run {unit}", f"on the controller: hostmesh controller grant {host} {unit}"
        )
    return SpiffeId.of_unit(trust_domain, unit)
