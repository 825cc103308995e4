"""Turns a meshed unit, or a whole host, into what it was before; needs neither agent nor proxy nor controller.

What the agent would do, were it alive, is done here in its stead: the last unit takes the host's own traces with it.
"""

import contextlib
import re
import sys
from pathlib import Path

from hostmesh.apply.executor import Doors, apply
from hostmesh.apply.proxy import ProxyClient
from hostmesh.cli import host
from hostmesh.cli.agent_link import AgentAway, AgentRefused, ask
from hostmesh.cli.doors import HostDoors
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.plan.compile import empty_plan
from hostmesh.plan.diff import diff
from hostmesh.plan.dropins import FILE, HEADER
from hostmesh.plan.elements import TableState
from hostmesh.plan.redirect import FAMILY, TABLE
from hostmesh.policy.settings import Settings
from hostmesh.wire.agent_control import Done, Reconcile

DISABLED = ".disabled"


def settings() -> Settings:
    """The host's settings; the usual ones, with a word on stderr, where the file is broken: it keeps nobody in."""
    try:
        return host.settings()
    except HostmeshError as error:
        print(f"note    the usual settings are taken, because\n{error}", file=sys.stderr)
        return Settings()


def set_policy_aside(path: Path) -> Path | None:
    """Rename ``UNIT.toml`` so that it is kept and counts no more; None where there is none."""
    aside = path.with_name(path.name + DISABLED)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def dropins_of(known: Settings, doors: HostDoors, unit: UnitName) -> list[str]:
    """Paths of the drop-ins of ours that put something in the unit's slice: its own, and those of its sockets."""
    found = doors.files.find(known.paths.systemd, f"*.d/{FILE}")
    line = f"Slice={unit.slice}"
    return [path for path, text in found.items() if text.startswith(HEADER) and line in text.splitlines()]


def remove_dropins(doors: HostDoors, paths: list[str]) -> None:
    """Remove them; the agent, if it lives, does the same at the same time."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # the agent was faster with the folder
            doors.files.remove(path)


def told_agent(known: Settings) -> bool:
    """Have the agent bring the kernel up to the files as they are now; False where none answers, or it could not."""
    try:
        ask(known, Reconcile(1), Done)
    except (AgentAway, AgentRefused):
        return False
    return True


def forget_unit(doors: HostDoors, unit: UnitName) -> None:
    """Take the unit's elements out of the ruleset; everybody else's stay."""
    state = doors.nft.state()
    text = without(state, unit) if state else ""
    if text:
        doors.nft.run(text)


def without(state: TableState, unit: UnitName) -> str:
    """The nft transaction that takes out every element whose comment names the unit's policy; empty if there is none.

    An element whose cgroup is gone lists as a number and can't be named: its set is flushed, and the others put back.
    """
    theirs = re.compile(rf"(?:.*/)?{re.escape(unit.full)}\.toml(?::[0-9]+)?\Z")
    lines = []
    for name, elements in sorted(state.sets.items()):
        gone = [element for element in elements if theirs.match(element.comment)]
        if not gone:
            continue
        where = f"{FAMILY} {TABLE} {name}"
        if all(_can_be_named(element.key) for element in gone):
            lines.append(f"delete element {where} {{ {', '.join(element.key for element in gone)} }}")
            continue
        stay = [e for e in elements if e not in gone and _can_be_named(e.key)]
        lines.append(f"flush {'map' if any(element.value for element in elements) else 'set'} {where}")
        if stay:
            lines.append(f"add element {where} {{ {', '.join(element.render() for element in stay)} }}")
    return "\n".join([*lines, ""]) if lines else ""


def _can_be_named(key: str) -> bool:
    return not key.startswith('"') or key.startswith('"mesh.slice/')


async def empty_host(known: Settings, doors: HostDoors) -> list[str]:
    """Take everything of ours out of kernel and systemd: the plan of a host that is to have nothing. Steps done."""
    done: list[str] = []
    everything = Doors(
        doors.nft,
        doors.netlink,
        doors.sysctls,
        doors.systemd,
        doors.files,
        ProxyClient(known.paths.proxy_socket, lambda _: None),
    )
    plan = empty_plan()
    await apply(diff(plan, await doors.observer.observed(plan, None)), everything, done.append)
    return done
