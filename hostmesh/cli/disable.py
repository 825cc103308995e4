"""Turns a meshed unit into an ordinary one again; root is all it takes. Every other unit stays as it is."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hostmesh.cli import host
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.policy.settings import Settings

if TYPE_CHECKING:
    from hostmesh.cli.doors import HostDoors


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh disable UNIT [--now]`."""
    parser.add_argument("unit", metavar="UNIT")
    parser.add_argument("--now", action="store_true", help="restart the unit too: out of the mesh when this returns")
    parser.set_defaults(do=disable)


def disable(arguments: argparse.Namespace) -> int:
    """The verb."""
    host.must_be_root("disable")
    from hostmesh.cli.bus import finish  # noqa: PLC0415  D-Bus takes its time to load

    return finish(_disable(UnitName.parse(arguments.unit), now=arguments.now))


async def _disable(unit: UnitName, *, now: bool) -> int:
    from hostmesh.cli import removal  # noqa: PLC0415
    from hostmesh.cli.doors import open_doors  # noqa: PLC0415

    known = removal.settings()
    doors = open_doors(known)
    aside = removal.set_policy_aside(host.policy_path(known, unit.full))
    dropins = removal.dropins_of(known, doors, unit)
    if aside:
        print(f"kept    {aside}: the policy, out of force")
    elif not dropins and not doors.cgroups.id(unit.cgroup):
        raise HostmeshError(f"{unit} is not meshed", "hostmesh status lists the units that are")
    removal.remove_dropins(doors, dropins)
    for path in dropins:
        print(f"removed {path}")
    await doors.systemd.reload()
    await leave(known, doors, unit, dropins, now=now)
    await doors.systemd.close()
    return 0


async def leave(known: Settings, doors: "HostDoors", unit: UnitName, dropins: list[str], *, now: bool) -> None:
    """After policy and drop-ins are gone: the kernel forgets the unit, and with ``now`` it is restarted."""
    from hostmesh.cli import removal  # noqa: PLC0415

    agent = removal.told_agent(known)
    if not agent:
        print("note    the agent does not answer; what it would do is done here", file=sys.stderr)
        removal.forget_unit(doors, unit)
    sockets = sorted({Path(path).parent.name.removesuffix(".d") for path in dropins} - {unit.full})
    running = await doors.systemd.active_states([*sockets, unit.full])
    alive = [name for name in (*sockets, unit.full) if running.get(name) in ("active", "reloading", "activating")]
    if not now:
        if alive:
            print("note    until it is restarted it stays in its mesh slice, which lets nothing through but loopback")
            print(f"next    systemctl restart {' '.join(alive)}")
        return
    if len(alive) > 1:
        await doors.systemd.stop(unit.full)  # a socket does not restart under a running service
    for name in alive:
        await doors.systemd.restart(name)
        print(f"restarted {name}")
    if not doors.cgroups.populated(unit.cgroup):
        await doors.systemd.stop(unit.slice)
    if agent:
        removal.told_agent(known)
    elif not list(Path(known.paths.policies).glob(f"*{host.SUFFIX}")):  # noqa: ASYNC240  a folder of a few files
        for step in await removal.empty_host(known, doors):
            print(f"undone  {step}")
