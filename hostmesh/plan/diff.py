"""Turns a plan and what was observed into the ordered changes between them: named values that `apply/executor.py` does.

Order is safety: a unit's slice and the proxy's knowledge of it come before its packets are sent to the proxy, and its
packets stop being sent before the proxy forgets it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hostmesh.plan.compile import Plan
from hostmesh.plan.elements import TableState, update
from hostmesh.plan.routing import PolicyRule, Route
from hostmesh.wire.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there, as far as it is ours. table None: no such table. files: text by path, of those hostmesh wrote.

    slices: active ones under ``mesh.slice``; idle: those of them in which nothing runs. before: values of sysctls that
    hostmesh changed, as they were. reload: systemd has not read its files since they changed. proxy_revision: of the
    snapshot in force, empty for none; None when the proxy doesn't answer (it gets its snapshot when it does).
    """

    table: TableState | None
    sysctls: dict[str, str]
    before: dict[str, str]
    rules: frozenset[PolicyRule]
    routes: frozenset[Route]
    slices: frozenset[str]
    idle: frozenset[str]
    files: dict[str, str]
    reload: bool
    proxy_revision: str | None


@dataclass(frozen=True, slots=True)
class WriteFile:
    path: str
    text: str

    @property
    def name(self) -> str:
        return f"write {self.path}"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    path: str

    @property
    def name(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class ReloadUnits:
    @property
    def name(self) -> str:
        return "systemd: daemon-reload"


@dataclass(frozen=True, slots=True)
class StartSlice:
    slice: str

    @property
    def name(self) -> str:
        return f"start {self.slice}"


@dataclass(frozen=True, slots=True)
class StopSlice:
    slice: str

    @property
    def name(self) -> str:
        return f"stop {self.slice}"


@dataclass(frozen=True, slots=True)
class RestoreSysctl:
    key: str
    value: str

    @property
    def name(self) -> str:
        return f"restore sysctl {self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    key: str
    value: str

    @property
    def name(self) -> str:
        return f"sysctl {self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    route: Route

    @property
    def name(self) -> str:
        return f"add route {self.route.destination} table {self.route.table}"


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    route: Route

    @property
    def name(self) -> str:
        return f"delete route {self.route.destination} table {self.route.table}"


@dataclass(frozen=True, slots=True)
class AddPolicyRule:
    rule: PolicyRule

    @property
    def name(self) -> str:
        return f"add rule {self.rule.preference} IPv{self.rule.version} fwmark {self.rule.mark:#010x}"


@dataclass(frozen=True, slots=True)
class DeletePolicyRule:
    rule: PolicyRule

    @property
    def name(self) -> str:
        return f"delete rule {self.rule.preference} IPv{self.rule.version} fwmark {self.rule.mark:#010x}"


@dataclass(frozen=True, slots=True)
class ChangeRuleset:
    """One nft transaction. ``what``: ``replace``, or which sets get and lose how many elements."""

    what: str
    text: str

    @property
    def name(self) -> str:
        return f"ruleset: {self.what}"


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    snapshot: Snapshot

    @property
    def name(self) -> str:
        return f"snapshot {self.snapshot.revision[:12]} to the proxy"


Change = (
    WriteFile
    | RemoveFile
    | ReloadUnits
    | StartSlice
    | StopSlice
    | RestoreSysctl
    | SetSysctl
    | AddRoute
    | DeleteRoute
    | AddPolicyRule
    | DeletePolicyRule
    | ChangeRuleset
    | SendSnapshot
)


def diff(plan: Plan, observed: Observed) -> tuple[Change, ...]:
    """The changes that make ``observed`` into ``plan``, in the order in which they are done; none when they agree."""
    return (
        *_files(plan, observed),
        *(StartSlice(name) for name in plan.slices if name not in observed.slices),
        *(SetSysctl(key, value) for key, value in sorted(plan.sysctls.items()) if observed.sysctls.get(key) != value),
        *_snapshot(plan, observed),
        *(AddRoute(route) for route in sorted(set(plan.routes) - observed.routes)),
        *(AddPolicyRule(rule) for rule in sorted(set(plan.rules) - observed.rules)),
        *_ruleset(plan, observed),
        *(DeletePolicyRule(rule) for rule in sorted(observed.rules - set(plan.rules))),
        *(DeleteRoute(route) for route in sorted(observed.routes - set(plan.routes))),
        *(RestoreSysctl(key, value) for key, value in sorted(observed.before.items()) if key not in plan.sysctls),
        *(StopSlice(name) for name in sorted(observed.idle - set(plan.slices))),
    )


def _files(plan: Plan, observed: Observed) -> Iterator[Change]:
    written = [WriteFile(path, text) for path, text in sorted(plan.files.items()) if observed.files.get(path) != text]
    removed = [RemoveFile(path) for path in sorted(set(observed.files) - set(plan.files))]
    yield from written
    yield from removed
    if written or removed or observed.reload:
        yield ReloadUnits()


def _snapshot(plan: Plan, observed: Observed) -> Iterator[Change]:
    if plan.snapshot and observed.proxy_revision not in (None, plan.snapshot.revision):
        yield SendSnapshot(plan.snapshot)


def _ruleset(plan: Plan, observed: Observed) -> Iterator[Change]:
    change = update(plan.table, observed.table)
    if change:
        yield ChangeRuleset(*change)
