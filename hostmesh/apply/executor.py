"""Turns changes into effects, step by named step: check, do, verify.

The doors stand here as Protocols, their adapters beside this module, one each, and none knows another. A step that is
already so is left alone. One that fails ends the run, but for the steps that need none of the others: a drop-in that
cannot be written must not keep policy out of the proxy. The next run begins where this one stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hostmesh.errors import HostmeshError
from hostmesh.plan.diff import (
    AddPolicyRule,
    AddRoute,
    Change,
    ChangeRuleset,
    DeletePolicyRule,
    DeleteRoute,
    ReloadUnits,
    RemoveFile,
    RestoreSysctl,
    SendSnapshot,
    SetSysctl,
    StartSlice,
    StopSlice,
    WriteFile,
)
from hostmesh.plan.routing import PolicyRule, Route
from hostmesh.wire.snapshot import Snapshot


class Firewall(Protocol):
    """`apply/nft.py`: the one table that is ours."""

    def run(self, text: str) -> None: ...


class Routing(Protocol):
    """`apply/netlink.py`: policy rules and routes."""

    async def rules(self) -> frozenset[PolicyRule]: ...
    async def routes(self) -> frozenset[Route]: ...
    async def add_rule(self, rule: PolicyRule) -> None: ...
    async def delete_rule(self, rule: PolicyRule) -> None: ...
    async def add_route(self, route: Route) -> None: ...
    async def delete_route(self, route: Route) -> None: ...


class Sysctls(Protocol):
    """`apply/sysctl.py`: sets, and remembers what was there before."""

    def get(self, key: str) -> str: ...
    def set(self, key: str, value: str) -> None: ...
    def restore(self, key: str) -> None: ...


class Units(Protocol):
    """`apply/systemd.py`: units over D-Bus."""

    async def is_active(self, unit: str) -> bool: ...
    async def start(self, unit: str) -> None: ...
    async def stop(self, unit: str) -> None: ...
    async def reload(self) -> None: ...


class Files(Protocol):
    """`apply/files.py`: small text files, written whole."""

    def read(self, path: str) -> str | None: ...
    def write(self, path: str, text: str) -> None: ...
    def remove(self, path: str) -> None: ...


class Proxy(Protocol):
    """`apply/proxy.py`: the proxy's control socket."""

    async def set_snapshot(self, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True, slots=True)
class Doors:
    """All the ways in which a host is changed."""

    firewall: Firewall
    routing: Routing
    sysctls: Sysctls
    units: Units
    files: Files
    proxy: Proxy


Report = Callable[[str], None]
"""Gets the name of every step that had an effect, once, after it is verified."""


_FILES = (WriteFile, RemoveFile, ReloadUnits)  # of use when a unit starts next: no other step needs them
_FREE = (*_FILES, SendSnapshot)  # need no other step


class StepFailed(HostmeshError):
    """A step, or several, that did not do what they say; what came before stands, what needs them was not begun."""


async def apply(changes: Sequence[Change], doors: Doors, report: Report) -> None:
    """Do the changes in order. Raises `StepFailed` when one fails, naming it and the cause."""
    failed: list[StepFailed] = []
    held = False
    for change in changes:
        if held and not isinstance(change, _FREE):
            continue
        try:
            done = await _step(change, doors)
        except StepFailed as error:
            failed.append(error)
            held = held or not isinstance(change, _FILES)
        else:
            if done:
                report(change.name)
    if len(failed) > 1:
        raise StepFailed("; ".join(map(str, failed)))
    if failed:
        raise failed[0]


async def _step(change: Change, doors: Doors) -> bool:
    """Check, do, verify; whether there was anything to do."""
    try:
        if await _is_so(change, doors):
            return False
        await _do(change, doors)
        so = await _is_so(change, doors)
    except (OSError, HostmeshError) as error:
        raise StepFailed(f"{change.name}: {error}") from error
    if so is False:
        raise StepFailed(f"{change.name}: done, but it is not so", "does another program undo it?")
    return True


async def _is_so(change: Change, doors: Doors) -> bool | None:  # noqa: PLR0911 one line a kind of change
    """Whether the change is already there; None where only doing it can tell."""
    match change:
        case WriteFile(path, text):
            return doors.files.read(path) == text
        case RemoveFile(path):
            return doors.files.read(path) is None
        case StartSlice(name):
            return await doors.units.is_active(name)
        case StopSlice(name):
            return not await doors.units.is_active(name)
        case SetSysctl(key, value):
            return doors.sysctls.get(key) == value
        case AddRoute(route):
            return route in await doors.routing.routes()
        case DeleteRoute(route):
            return route not in await doors.routing.routes()
        case AddPolicyRule(rule):
            return rule in await doors.routing.rules()
        case DeletePolicyRule(rule):
            return rule not in await doors.routing.rules()
        case ReloadUnits() | ChangeRuleset() | SendSnapshot() | RestoreSysctl():
            return None  # each is answered by the other side: a job, a transaction, an Ack


async def _do(change: Change, doors: Doors) -> None:  # noqa: PLR0912 one line a kind of change
    match change:
        case WriteFile(path, text):
            doors.files.write(path, text)
        case RemoveFile(path):
            doors.files.remove(path)
        case ReloadUnits():
            await doors.units.reload()
        case StartSlice(name):
            await doors.units.start(name)
        case StopSlice(name):
            await doors.units.stop(name)
        case RestoreSysctl(key, _):
            doors.sysctls.restore(key)
        case SetSysctl(key, value):
            doors.sysctls.set(key, value)
        case AddRoute(route):
            await doors.routing.add_route(route)
        case DeleteRoute(route):
            await doors.routing.delete_route(route)
        case AddPolicyRule(rule):
            await doors.routing.add_rule(rule)
        case DeletePolicyRule(rule):
            await doors.routing.delete_rule(rule)
        case ChangeRuleset(_, text):
            doors.firewall.run(text)
        case SendSnapshot(snapshot):
            await doors.proxy.set_snapshot(snapshot)
