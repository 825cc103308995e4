"""Turns a host of the mesh into one that never was: all units out, nothing of ours left in the kernel or in systemd.

Programs, identities and policies (set aside) stay: those are the package's and the administrator's to remove.
"""

import argparse
from pathlib import Path

from hostmesh.cli import host
from hostmesh.names import UnitName

_SERVICES = ("hostmeshd.service", "hostmesh-proxy.service", "hostmesh-controller.service")


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh uninstall`."""
    parser.set_defaults(do=uninstall)


def uninstall(_: argparse.Namespace) -> int:
    """The verb."""
    host.must_be_root("uninstall")
    from hostmesh.cli.bus import finish  # noqa: PLC0415  D-Bus takes its time to load

    return finish(_uninstall())


async def _uninstall() -> int:
    from hostmesh.cli import removal  # noqa: PLC0415
    from hostmesh.cli.bus import Bus  # noqa: PLC0415
    from hostmesh.cli.disable import leave  # noqa: PLC0415
    from hostmesh.cli.doors import open_doors  # noqa: PLC0415

    known = removal.settings()
    doors = open_doors(known)
    await doors.systemd.stop(_SERVICES[0])  # it would make anew what is taken down
    print(f"stopped {_SERVICES[0]}")
    for name in _meshed(known.paths.policies):
        unit = UnitName(name)
        print(f"kept    {removal.set_policy_aside(host.policy_path(known, name))}: the policy, out of force")
        dropins = removal.dropins_of(known, doors, unit)
        removal.remove_dropins(doors, dropins)
        await doors.systemd.reload()
        await leave(known, doors, unit, dropins, now=True)
    for step in await removal.empty_host(known, doors):
        print(f"undone  {step}")
    for service in _SERVICES[1:]:
        await doors.systemd.stop(service)
        print(f"stopped {service}")
    await doors.systemd.stop("mesh.slice")
    async with Bus() as bus:
        await bus.disable(*_SERVICES)
    await doors.systemd.reload()
    await doors.systemd.close()
    return 0


def _meshed(folder: str) -> list[str]:
    return [path.name.removesuffix(host.SUFFIX) for path in sorted(Path(folder).glob(f"*{host.SUFFIX}"))]
