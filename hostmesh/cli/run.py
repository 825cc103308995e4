"""Turns a command into a transient unit in a mesh slice, with this terminal's files, and its exit code into ours."""

import argparse
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hostmesh.cli import host
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.policy.settings import Settings

if TYPE_CHECKING:
    from hostmesh.cli.bus import Bus

_READY_SECONDS = 15.0
_REFUSED_SECONDS = 3.0  # what was refused a moment ago may have been granted since
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_EXITED = 1  # CLD_EXITED of waitid(2); all else is death by a signal
_EMPTY = "# Written by `hostmesh run --create`: serves nothing, may call whatever answers.\n"


class NotReady(HostmeshError):
    """The mesh does not carry this unit's traffic yet."""


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh run [--unit NAME] [--create] [--user USER] -- CMD…`."""
    parser.add_argument("--unit", metavar="NAME", help="whose policy and identity; default: the command's name")
    parser.add_argument("--create", action="store_true", help="write an empty policy if there is none")
    parser.add_argument("--user", metavar="USER", help="run as this user; default: root")
    parser.add_argument("command", nargs="+", metavar="CMD", help="the command, after --")
    parser.set_defaults(do=run)


def run(arguments: argparse.Namespace) -> int:
    """The command's exit code; 128 and its number where a signal ended it."""
    host.must_be_root("run")
    from hostmesh.cli.bus import finish  # noqa: PLC0415  D-Bus takes its time to load

    program = shutil.which(arguments.command[0])
    if program is None:
        raise HostmeshError(f"{arguments.command[0]}: no such command")
    known, unit = host.settings(), UnitName.parse(arguments.unit or Path(program).name)
    path = host.policy_path(known, unit.full)
    if not path.exists():
        if not arguments.create:
            raise HostmeshError(
                f"{unit} has no policy: {path} is not there", "a file with one comment will do; --create writes it"
            )
        from hostmesh.apply.files import Files  # noqa: PLC0415

        Files().write(str(path), _EMPTY)
        finish(_grant(host.host_name(known), unit.full))
    _wait_until_ready(known, unit)
    return finish(_run(unit, [str(Path(program).absolute()), *arguments.command[1:]], arguments.user))


async def _grant(host_name: str, unit: str) -> None:
    from hostmesh.apply.systemd import Systemd  # noqa: PLC0415
    from hostmesh.cli import founding  # noqa: PLC0415
    from hostmesh.cli.bus import Bus  # noqa: PLC0415

    systemd = Systemd()
    async with Bus() as bus:
        await founding.grant_here(bus, systemd, host_name, unit)
    await systemd.close()


def _wait_until_ready(known: Settings, unit: UnitName) -> None:
    """Until the agent has the unit's slice in the kernel, and the proxy its identity. A dead agent stops nobody."""
    import time  # noqa: PLC0415

    from hostmesh.cli.agent_link import AgentAway, ask  # noqa: PLC0415
    from hostmesh.wire.agent_control import Done, GetStatus, Reconcile, Status  # noqa: PLC0415

    deadline, patience = time.monotonic() + _READY_SECONDS, time.monotonic() + _REFUSED_SECONDS
    slice_is_there = Path("/sys/fs/cgroup", unit.cgroup).is_dir
    while True:
        try:
            status = ask(known, GetStatus(1), Status)
        except AgentAway as error:
            if not slice_is_there():
                raise
            print(f"hostmesh run: {error.message}; what is in force carries {unit}", file=sys.stderr)
            return
        mine = next((row for row in status.units if row.unit == unit.full), None)
        if mine and mine.number and mine.svid and slice_is_there():
            return
        if mine and mine.refused and time.monotonic() > patience:
            raise NotReady(f"{unit} gets no identity: {mine.refused}")
        if time.monotonic() > deadline:
            why = "; ".join([*(f.message for f in status.findings), *status.failures]) or "hostmesh status"
            raise NotReady(f"{unit} is not carried by the mesh after {_READY_SECONDS:.0f} s", why)
        ask(known, Reconcile(1), Done) if mine is None else time.sleep(0.05)


async def _run(unit: UnitName, command: list[str], user: str | None) -> int:
    import asyncio  # noqa: PLC0415

    from hostmesh.apply.bus import SERVICE, UNIT  # noqa: PLC0415
    from hostmesh.cli.bus import Bus  # noqa: PLC0415
    from hostmesh.observe.units import object_path  # noqa: PLC0415

    name = f"{unit.stem.partition('@')[0]}-run-{secrets.token_hex(4)}.service"
    changed = asyncio.Event()
    async with Bus(fds=True) as bus:
        path = object_path(UnitName(name))
        await bus.watch(path, changed.set)
        await bus.call(
            "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", _properties(unit, command, user), [], fds=(0, 1, 2)
        )
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        def pass_on(number: int) -> None:
            tasks.add(loop.create_task(_kill(bus, name, number)))

        for number in _PASSED_ON:
            loop.add_signal_handler(number, pass_on, number)
        while True:
            changed.clear()
            state = await bus.get_all(path, UNIT)
            if state["ActiveState"] in ("inactive", "failed") and not state["Job"][0]:
                service = await bus.get_all(path, SERVICE)
                break
            await changed.wait()
        await bus.call("UnrefUnit", "s", name)
    code, status = service["ExecMainCode"], service["ExecMainStatus"]
    if code == 0:
        raise HostmeshError(f"{name} could not be started: {service['Result']}", f"journalctl -u {name}")
    return int(status) if code == _EXITED else 128 + int(status)


async def _kill(bus: "Bus", name: str, number: int) -> None:
    await bus.call("KillUnit", "ssi", name, "all", number)


def _properties(unit: UnitName, command: list[str], user: str | None) -> list[list[object]]:
    """As for systemd.unit(5), systemd.exec(5); descriptors are indices into the message's (0, 1, 2)."""
    from dbus_fast import Variant  # noqa: PLC0415

    from hostmesh.plan.dropins import RESOLVERS  # noqa: PLC0415

    environment = [f"{key}={value}" for key, value in os.environ.items() if key.isidentifier() and value.isprintable()]
    properties: list[list[object]] = [
        ["Description", Variant("s", f"hostmesh run {' '.join(command)}"[:200])],
        ["Slice", Variant("s", unit.slice)],
        ["AddRef", Variant("b", True)],
        ["CollectMode", Variant("s", "inactive-or-failed")],
        ["Type", Variant("s", "exec")],
        ["ExecStartEx", Variant("a(sasas)", [[command[0], command, ["no-env-expand"]]])],
        ["WorkingDirectory", Variant("s", str(Path.cwd()))],
        ["Environment", Variant("as", environment)],
        ["InaccessiblePaths", Variant("as", [f"-{path}" for path in RESOLVERS])],
        ["StandardInputFileDescriptor", Variant("h", 0)],
        ["StandardOutputFileDescriptor", Variant("h", 1)],
        ["StandardErrorFileDescriptor", Variant("h", 2)],
    ]
    return [*properties, ["User", Variant("s", user)]] if user else properties
