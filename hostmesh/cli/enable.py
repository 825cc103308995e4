"""Turns a unit into a meshed one, audit first: policy and drop-in, both checked; restarting it is left to a person.

Everything that can be looked at is looked at before anything is changed.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hostmesh.cli import host
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load

if TYPE_CHECKING:
    from hostmesh.cli.bus import Bus
    from hostmesh.cli.doors import HostDoors
    from hostmesh.cli.unit_facts import UnitFact


class NotMeshable(HostmeshError):
    """The unit cannot be meshed, and why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh enable UNIT [--enforce]`."""
    parser.add_argument("unit", metavar="UNIT", help="for example nginx or nginx.service")
    parser.add_argument("--enforce", action="store_true", help="no audit: refuse from the start whoever is not allowed")
    parser.set_defaults(do=enable)


def enable(arguments: argparse.Namespace) -> int:
    """The verb."""
    host.must_be_root("enable")
    from hostmesh.cli.bus import finish  # noqa: PLC0415  D-Bus takes its time to load

    return finish(_enable(UnitName.parse(arguments.unit), enforce=arguments.enforce))


async def _enable(unit: UnitName, *, enforce: bool) -> int:
    from hostmesh.cli import admission, founding, unit_facts  # noqa: PLC0415
    from hostmesh.cli.bus import Bus  # noqa: PLC0415
    from hostmesh.cli.doors import open_doors  # noqa: PLC0415

    known = host.settings()
    doors = open_doors(known)
    async with Bus() as bus:
        fact = await unit_facts.look(bus, unit)
        reasons = admission.objections(fact)
        if reasons:
            told = "".join(f"\n    {reason.what}\n        {reason.remedy}" for reason in reasons)
            raise NotMeshable(f"{unit} cannot be meshed:{told}")
        draft = await _checked_policy(known, doors, unit, enforce=enforce)
        name = host.host_name(known)
        if not founding.joined(known):
            await founding.found(bus, doors.systemd, name, unit.full)
        await founding.grant_here(bus, doors.systemd, name, unit.full)
        path = host.policy_path(known, unit.full)
        if draft:
            doors.files.write(str(path), draft)
        print(f"{'wrote' if draft else 'kept':8}{path}")
        await _drop_in(known, doors, bus, fact)
        await founding.start_units(bus, doors.systemd, founding.HOST_UNITS)
    await doors.systemd.close()
    _tell(fact, draft, path)
    return 0


async def _checked_policy(known: Settings, doors: "HostDoors", unit: UnitName, *, enforce: bool) -> str:
    """The draft to write, empty where a policy is there; raises PolicyError unless all policies pass with it."""
    from hostmesh.cli import drafts  # noqa: PLC0415

    path, folder = host.policy_path(known, unit.full), Path(known.paths.policies)
    texts = host.policy_texts([folder]) if folder.is_dir() else {}  # noqa: ASYNC240  nothing else runs
    draft = ""
    if str(path) not in texts:
        draft = drafts.first_draft(unit, await doors.observer.unit_listeners(unit.full))
        draft = drafts.enforced(str(path), draft) if enforce else draft
    load({**texts, **({str(path): draft} if draft else {})})
    return draft


async def _drop_in(known: Settings, doors: "HostDoors", bus: "Bus", fact: "UnitFact") -> None:
    """Write the drop-ins of the unit and its sockets, have systemd read them, and see that it will do as they say."""
    from hostmesh.cli import unit_facts  # noqa: PLC0415
    from hostmesh.plan.dropins import dropin_path, dropin_text  # noqa: PLC0415

    names = [fact.unit, *map(UnitName, fact.sockets)]
    for name in names:
        path, text = dropin_path(known, name), dropin_text(fact.unit.slice, name)
        if doors.files.read(path) != text:
            doors.files.write(path, text)
            print(f"wrote   {path}")
        else:
            print(f"kept    {path}")
    await doors.systemd.reload()
    for name in names:
        seen = await unit_facts.slice_of(bus, name.full)
        if seen != fact.unit.slice:
            raise HostmeshError(
                f"{name} would still run in {seen}, not in {fact.unit.slice}",
                f"systemctl cat {name} shows what overrides the drop-in",
            )
    print(f"checked {fact.unit} will run in {fact.unit.slice}")


def _tell(fact: "UnitFact", draft: str, path: Path) -> None:
    from hostmesh.cli import admission, removal  # noqa: PLC0415

    loopholes = admission.loopholes(fact)
    for loophole in loopholes:
        print(f"note    {loophole.what}.")
    if loopholes:
        lines = "".join(f"\n            {loophole.remedy}" for loophole in loopholes)
        print(f"        What it does not need can be closed: systemctl edit {fact.unit}\n            [Service]{lines}")
    aside = path.with_name(path.name + removal.DISABLED)
    if draft and aside.exists():
        print(f"note    its policy of before is still there: {aside}")
    if draft:
        print(f"look    at {path}: are the ports and protocols right?")
    names = " ".join((*fact.sockets, fact.unit.full))
    print(f"next    systemctl {'restart' if fact.active_state == 'active' else 'start'} {names}")
