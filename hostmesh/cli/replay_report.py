"""Turns judged requests into what a person, or a program, is told: sums, and groups of like requests."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from hostmesh.cli import show
from hostmesh.observe.lines import caller_name
from hostmesh.policy.hindsight import Change, Outcome, Recorded, template

_TITLES = {
    Change.DENIED: "WOULD NOW BE DENIED",
    Change.ALLOWED: "WOULD NOW BE ALLOWED",
    Change.ROUTED: "WOULD TAKE ANOTHER ROUTE",
    Change.UNKNOWN: "CANNOT BE JUDGED: what decides is not recorded",
}
_NOT_JUDGED = "not judged: what tokens, headers, bodies and queries say, limits, and what a gatekeeper answers"


class Group(NamedTuple):
    """Like requests. was, now: what decided, and would decide: file and line; for routes the route."""

    change: Change
    caller: str
    service: str
    method: str
    path: str
    was: str
    now: str
    why: str


@dataclass(slots=True)
class Report:
    """All that was judged since a moment. silent: units of which not every request is recorded, and what is."""

    since: datetime
    silent: Mapping[str, str] = field(default_factory=dict)
    _groups: Counter[Group] = field(default_factory=Counter)
    _suppressed: Counter[str] = field(default_factory=Counter)
    _judged: int = 0

    def add(self, request: Recorded, outcome: Outcome) -> None:
        """One more."""
        self._judged += 1
        if outcome.change is Change.NONE:
            return
        outgoing = request.direction == "outbound"
        caller = request.unit.removesuffix(".service") if outgoing else caller_name(request.peer)
        group = Group(
            change=outcome.change,
            caller=request.client if request.peer == "plaintext" and not outgoing else caller,
            service=request.service or (caller_name(request.peer) if outgoing else request.unit),
            method=request.method or "-",
            path=template(request.path) or "-",
            was=(request.route or "no route") if outcome.change is Change.ROUTED else request.rule,
            now=outcome.rule,
            why=outcome.why,
        )
        self._groups[group] += 1

    def suppressed(self, unit: str, lines: int) -> None:
        """So many requests of the unit have no line."""
        if lines:
            self._suppressed[unit] += lines

    def of(self, change: Change) -> int:
        """How many requests."""
        return sum(count for group, count in self._groups.items() if group.change is change)

    @property
    def is_changed(self) -> bool:
        """Would anything be otherwise, as far as that is known?"""
        return any(group.change is not Change.UNKNOWN for group in self._groups)

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "since": self.since.isoformat(),
            "requests": self._judged,
            **{change.value: self.of(change) for change in _TITLES},
            "groups": [{**group._asdict(), "count": count} for group, count in self._groups.most_common()],
            "not_recorded": {"units": dict(self.silent), "suppressed": dict(self._suppressed)},
        }

    def text(self) -> str:
        """For a person."""
        denied, allowed, routed, unknown = (self.of(change) for change in _TITLES)
        head = (
            f"{self._judged} requests since {self.since:%Y-%m-%d %H:%M}: {denied} would now be denied, "
            f"{allowed} allowed, {routed} take another route; {unknown} cannot be judged"
        )
        return "\n\n".join([head, *filter(None, map(self._table, _TITLES)), self._notes()])

    def _table(self, change: Change) -> str:
        rows = [
            (f"  {count}", group.caller, group.service, group.method, group.path, group.was, group.now, group.why)
            for group, count in self._groups.most_common()
            if group.change is change
        ]
        head = ("  TIMES", "FROM", "TO", "METHOD", "PATH", "WAS BY", "NOW BY", "")
        return f"{_TITLES[change]}\n{show.table(head, rows)}" if rows else ""

    def _notes(self) -> str:
        return "\n".join(
            [
                *(f"not recorded: {unit}: {told}" for unit, told in self.silent.items()),
                *(f"not recorded: {unit}: {count} lines, too many at once" for unit, count in self._suppressed.items()),
                _NOT_JUDGED,
            ]
        )
