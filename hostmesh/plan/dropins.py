"""Turns policies into unit drop-ins: text of files that put a unit in its slice, after the mesh, with its own names.

`Wants=`, never `Requires=`: a mesh that is down must not take units with it (systemd.unit(5), systemd.exec(5)).
"""

from collections.abc import Sequence

from hostmesh.names import UnitName
from hostmesh.plan.facts import HostFacts
from hostmesh.policy.model import Policy
from hostmesh.policy.settings import Settings

FILE = "50-hostmesh.conf"
HEADER = "# Written by hostmesh: it puts this unit in the mesh. `hostmesh disable` takes it away.\n"
RESOLVERS = ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd", "/run/avahi-daemon/socket")
"""What would answer a unit's names past the resolver that knows services: nss-resolve, nscd, nss-mdns."""


def dropin_path(settings: Settings, unit: UnitName) -> str:
    """Where a unit's drop-in stands."""
    return f"{settings.paths.systemd}/{unit.full}.d/{FILE}"


def dropin_text(slice_name: str, unit: UnitName) -> str:
    """The drop-in of a service or socket unit."""
    if unit.full.endswith(".socket"):
        # Its sockets are born in the unit's own cgroup, and what counts is where a socket was born. Not ordered after
        # the mesh: sockets come before basic.target, the mesh after it.
        lines = ["[Socket]", f"Slice={slice_name}"]
    else:
        hidden = " ".join(f"-{path}" for path in RESOLVERS)
        lines = [
            "[Unit]",
            "Wants=hostmeshd.service hostmesh-proxy.service",
            "After=hostmeshd.service hostmesh-proxy.service",
            "",
            "[Service]",
            f"Slice={slice_name}",
            f"InaccessiblePaths={hidden}",
        ]
    return HEADER + "\n".join([*lines, ""])


def dropin_files(settings: Settings, policies: Sequence[Policy], facts: HostFacts) -> dict[str, str]:
    """Text by path: for every policy its unit's drop-in, and those of the socket units that start it."""
    files = {}
    for policy in policies:
        known = facts.units.get(policy.unit)
        for unit in (policy.unit, *(known.sockets if known else ())):
            files[dropin_path(settings, unit)] = dropin_text(policy.unit.slice, unit)
    return files
