"""Turns the proxy's events and the kernel's refusals into journal lines, and into suggestions of who to allow."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from hostmesh.errors import HostmeshError
from hostmesh.observe import lines
from hostmesh.observe.journal import Journal
from hostmesh.observe.nflog import Refusal
from hostmesh.plan import redirect
from hostmesh.wire.agent_control import Suggestion
from hostmesh.wire.codec import decode
from hostmesh.wire.proxy_control import Event, Events

MAX_SUGGESTIONS = 200
MAX_METHODS = 16  # a caller may send any word as a method
_KERNEL, _AGENT = "kernel", "agent"  # kinds of lines beside those of the proxy's events
_ERROR, _WARNING, _INFO = 3, 4, 6  # syslog(3)


@dataclass(slots=True)
class _Seen:
    client: str = ""
    methods: set[str] = field(default_factory=set)
    count: int = 0


@dataclass(slots=True)
class Callers:
    """Who was let pass by audit mode only: by unit, peer and port; at most 200 a unit. Kept over restarts by `dump`."""

    _seen: dict[str, dict[tuple[str, str, int], _Seen]] = field(default_factory=dict)
    changed: bool = False

    def dump(self) -> str:
        """All of it as JSON."""
        return msgspec.json.encode({unit: self.of(unit) for unit in sorted(self._seen)}).decode()

    def load(self, text: str) -> None:
        """What `dump` gave. Raises `HostmeshError` when it is something else."""
        try:
            kept = decode(text, dict[str, list[Suggestion]])
        except msgspec.DecodeError as error:
            told = f"callers seen before (callers.json) are lost: {error}"
            raise HostmeshError(told, "they come again as they call") from error
        for unit, suggestions in kept.items():
            self._seen[unit] = {
                (s.peer, s.client if s.peer == "plaintext" else "", s.port): _Seen(s.client, set(s.methods), s.count)
                for s in suggestions
            }

    def note(self, event: Event) -> None:
        """One call that enforcing would refuse. Callers without identity are told apart by address."""
        callers = self._seen.setdefault(event.unit, {})
        key = (event.peer, event.client if event.peer == "plaintext" else "", event.port)
        if key not in callers and len(callers) >= MAX_SUGGESTIONS:
            return
        self.changed = True
        seen = callers.setdefault(key, _Seen())
        seen.client, seen.count = event.client, seen.count + 1
        if event.method and len(seen.methods) < MAX_METHODS:
            seen.methods.add(event.method)

    def of(self, unit: str) -> list[Suggestion]:
        """The most frequent first."""
        found = [
            Suggestion(lines.caller_name(peer), peer, seen.client, port, sorted(seen.methods), seen.count)
            for (peer, _, port), seen in self._seen.get(unit, {}).items()
        ]
        return sorted(found, key=lambda s: (-s.count, s.caller, s.client, s.port))

    def forget(self, units: set[str]) -> None:
        """Drop what is known of units that are no longer in audit mode."""
        for unit in units & self._seen.keys():
            del self._seen[unit]
            self.changed = True


class Reports:
    """Everything that goes to the journal goes through here. ``clock``: monotonic seconds."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal, self._clock = journal, clock
        self.limit = lines.LineLimit()
        self.callers = Callers()
        self.dropped = 0
        self._told_lost = 0
        self._said: dict[str, str] = {}
        self._outside: dict[str, str] = {}

    @property
    def lost(self) -> int:
        """Entries that journald did not take."""
        return self._journal.lost

    def events(self, batch: Events) -> None:
        """A batch of the proxy."""
        self.dropped += batch.dropped
        for event in batch.events:
            if event.verdict == "audit-deny" and event.direction != "outbound":
                self.callers.note(event)
            self._unit_line(event.unit, event.kind, lines.event_fields(event))

    def refusals(self, batch: list[Refusal], units: Mapping[int, tuple[str, str]]) -> None:
        """Packets that the kernel refused. units: number to (unit, its policy file)."""
        for refusal in batch:
            unit, file = units.get(refusal.mark, ("", ""))
            self._unit_line(unit, _KERNEL, lines.refusal_fields(unit, rule_of(refusal.prefix, file), refusal))

    def _unit_line(self, unit: str, kind: str, fields: lines.Fields) -> None:
        if self.limit.admit(unit, kind, self._clock()):
            self._journal.send(fields)

    def tick(self) -> None:
        """Now and then: the lines that stand for suppressed ones, and for those that journald did not take."""
        lost = self._journal.lost
        if lost > self._told_lost and self._journal.send(lines.lost_fields(lost - self._told_lost)):
            self._told_lost = lost
        for over in self.limit.due(self._clock()):
            self._journal.send(lines.suppressed_fields(*over))

    def info(self, message: str) -> None:
        """A line of the agent itself."""
        self._journal.send(lines.agent_fields(message, _INFO))

    def warning(self, message: str) -> None:
        """A line of the agent itself that somebody should see."""
        self._journal.send(lines.agent_fields(message, _WARNING))

    def outside(self, units: dict[str, str]) -> None:
        """Units that run outside their mesh slice, and why: told in their journals once, and when the why changes."""
        for unit, why in units.items():
            if self._outside.get(unit) != why:
                self._unit_line(unit, _AGENT, lines.outside_fields(unit, why))
        self._outside = units

    def state(self, about: str, trouble: str) -> None:
        """Tell a trouble once when it begins or becomes another, and its end once. ``trouble`` empty: all is well."""
        before = self._said.get(about, "")
        if trouble == before:
            return
        self._said[about] = trouble
        if trouble:
            self._journal.send(lines.agent_fields(f"{about}: {trouble}", _ERROR))
        else:
            self._journal.send(lines.agent_fields(f"{about}: well again", _INFO))


_RULES = {
    redirect.PREFIX_LISTENER: "builtin:listener",
    redirect.PREFIX_PLAINTEXT: "no-plaintext",
    redirect.PREFIX_OUTBOUND: "no-outbound",
    redirect.PREFIX_VIP: "builtin:vip",
    redirect.PREFIX_SOURCE: "builtin:source",
}


def rule_of(prefix: str, file: str) -> str:
    """The rule's name, as docs/architecture.md has it, of a refusal with this nflog prefix."""
    name = _RULES.get(prefix, prefix or "unknown")
    return f"{file}:{name}" if file and name in ("no-plaintext", "no-outbound") else name
