"""Turns a host without a mesh into a mesh of one host: controller, join, and its units, enabled and started."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from hostmesh.apply.systemd import Systemd
from hostmesh.cli.bus import Bus
from hostmesh.controller.config import PATH as CONTROLLER
from hostmesh.controller.config import Config
from hostmesh.policy.hostfile import PLACE
from hostmesh.policy.settings import Settings

HOST_UNITS = ("hostmesh-proxy.service", "hostmeshd.service")
CONTROLLER_UNIT = "hostmesh-controller.service"


def joined(known: Settings) -> bool:
    """Has this host an identity in a mesh?"""
    return bool(known.controllers) and (Path(known.paths.state) / "identity").is_dir()


async def start_units(bus: Bus, systemd: Systemd, units: Sequence[str]) -> None:
    """Have them run now and after every boot."""
    await bus.enable(*units)
    await systemd.reload()
    for unit in units:
        if not await systemd.is_active(unit):
            await systemd.start(unit)
            say(f"started {unit}")


async def found(bus: Bus, systemd: Systemd, host_name: str, unit: str) -> None:
    """A controller for this host alone, on loopback, and this host its first member, allowed to run ``unit``.

    Begun again after an interruption, it goes on where it stopped.
    """
    from hostmesh.agent.enrol import join  # noqa: PLC0415  loads TLS, HTTP/2 and cryptography
    from hostmesh.controller import admin  # noqa: PLC0415  loads the CA

    if not CONTROLLER.exists():
        admin.init(Config(listen=("127.0.0.1", "::1"), advertise=("127.0.0.1",)))
        say("made    a controller for this host alone: CA, store, /etc/hostmesh/controller.toml")
    await start_units(bus, systemd, (CONTROLLER_UNIT,))
    done = await asyncio.to_thread(join, admin.make_token(host_name, (unit,)))
    say(f"joined  {done.trust_domain} as {done.host}; settings in {PLACE}")


async def grant_here(bus: Bus, systemd: Systemd, host_name: str, unit: str) -> None:
    """Let this host run one more unit, where the controller is on this host too; elsewhere its administrator does."""
    if not CONTROLLER.exists():
        return
    await start_units(bus, systemd, (CONTROLLER_UNIT,))
    from hostmesh.controller import admin  # noqa: PLC0415

    grants = {row.name: row.grants for row in admin.hosts()}.get(host_name)
    if grants is not None and unit not in grants:
        admin.grant(host_name, (unit,))
        say(f"granted {host_name} may run {unit}")


def say(line: str) -> None:
    """Progress, for the person who waits; standard output is for what came of it."""
    print(line, file=sys.stderr)
