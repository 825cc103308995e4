"""Turns what the proxy and the kernel report into journal entries: a sentence for people, fields for programs.

Pure: time comes in as an argument (seconds of any steady clock). Lines are limited by unit and kind, counters never.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hostmesh.observe.nflog import Refusal
from hostmesh.wire.proxy_control import Event

IDENTIFIER = "hostmesh"
_ERROR, _WARNING, _NOTICE, _INFO = 3, 4, 5, 6  # syslog(3)
Fields = dict[str, str | int]
_CLOCK = "; is the clock of both hosts right? hostmesh certs there; hostmeshd renews while a controller answers"
_FOREIGN = "; another mesh, or a host that is not of this one: hostmesh controller hosts lists those that are"
_NOT_OURS = "; no controller of this mesh signs such a certificate: find out who does"
# By the reasons of `proxy/src/peer.rs`.
_REMEDIES = {
    "builtin:expired": _CLOCK,
    "builtin:not-yet-valid": _CLOCK,
    "builtin:unknown-issuer": _FOREIGN,
    "builtin:wrong-trust-domain": _FOREIGN,
    "builtin:wrong-identity": "; another unit or host has the address: hostmesh status there says who runs on it",
    "builtin:wrong-usage": _NOT_OURS,
    "builtin:weak-key": _NOT_OURS,
    "builtin:bad-signature": _NOT_OURS,
    "builtin:too-long": _NOT_OURS,
    "builtin:unknown-extension": _NOT_OURS,
    "builtin:malformed": _NOT_OURS,
    "builtin:no-certificate": _FOREIGN,
    "builtin:revoked": "; hostmesh controller revoked says why, hostmesh controller unrevoke takes it back",
    "builtin:unknown-name": "; is this unit meshed here, and has it an identity? hostmesh status",
    "builtin:wrong-protocol": "; it is no proxy of hostmesh, or of another version: hostmesh --version there",
    "builtin:refused-by-peer": "; the journal of that host says why: journalctl -t hostmesh there",
    "builtin:timed-out": "; is TCP 15008 open between the hosts, and the other proxy alive?",
}


_LEADS = {
    "audit-deny": "would be denied, let pass (audit)",
    "audit-allow": "denied, would be let in but for audit",
}


def event_fields(event: Event) -> Fields:
    """The journal entry of one event of the proxy."""
    fields: Fields = {
        "MESSAGE": sentence(event),
        "PRIORITY": _priority(event),
        **_unit_fields(event.unit),
        "HOSTMESH_KIND": event.kind,
        "HOSTMESH_PEER": event.peer,
        "HOSTMESH_VERDICT": event.verdict,
        "HOSTMESH_RULE": event.rule,
        "HOSTMESH_SERVICE": event.service,
        "HOSTMESH_DIRECTION": event.direction,
        "HOSTMESH_PORT": event.port or "",
        "HOSTMESH_PROTOCOL": event.protocol,
        "HOSTMESH_CLIENT": event.client,
        "HOSTMESH_METHOD": event.method,
        "HOSTMESH_PATH": event.path,
        "HOSTMESH_STATUS": event.status or "",
        "HOSTMESH_GRPC_STATUS": "" if event.grpc_status is None else event.grpc_status,
        "HOSTMESH_TRIES": event.tries or "",
        "HOSTMESH_DURATION_US": event.duration_us or "",
        "HOSTMESH_BYTES_IN": event.bytes_in or "",
        "HOSTMESH_BYTES_OUT": event.bytes_out or "",
        "HOSTMESH_ROUTE": event.route,
        "HOSTMESH_FLAG": event.flag,
        "HOSTMESH_ENDPOINT": event.endpoint,
        "HOSTMESH_SNI": event.sni,
        "TRACE_ID": event.trace_id,
        "SPAN_ID": event.span_id,
        "SYSLOG_TIMESTAMP_NS": event.time_ns,
    }
    return {name: value for name, value in fields.items() if value != ""}


def refusal_fields(unit: str, rule: str, refusal: Refusal) -> Fields:
    """The journal entry of a packet that the kernel refused: ``rule`` is the ruleset's name for why."""
    source, to = address(refusal.source, refusal.source_port), address(refusal.destination, refusal.destination_port)
    return {
        "MESSAGE": f"refused by the kernel: {source} to {to}, by {rule}",
        "PRIORITY": _WARNING,
        **_unit_fields(unit),
        "HOSTMESH_KIND": "denied",
        "HOSTMESH_PEER": "plaintext",
        "HOSTMESH_VERDICT": "deny",
        "HOSTMESH_RULE": rule,
        "HOSTMESH_CLIENT": refusal.source,
        "HOSTMESH_DESTINATION": refusal.destination,
        "HOSTMESH_PORT": refusal.destination_port,
    }


def outside_fields(unit: str, why: str) -> Fields:
    """The entry of a unit that has a policy and runs outside its mesh slice."""
    return {"MESSAGE": f"NOT MESHED, no policy holds: {why}", "PRIORITY": _WARNING, **_unit_fields(unit)}


def suppressed_fields(unit: str, kind: str, count: int) -> Fields:
    """The entry that stands for lines of a kind that were not written."""
    return {
        "MESSAGE": f"{count} more lines of kind {kind!r} suppressed (too many; the counters are exact)",
        "PRIORITY": _WARNING,
        **_unit_fields(unit),
        "HOSTMESH_SUPPRESSED": count,
    }


def lost_fields(count: int) -> Fields:
    """The entry that stands for those that journald did not take."""
    message = f"{count} lines are lost: journald did not take them (hostmesh_agent_journal_lost_total)"
    return agent_fields(message, _WARNING, {"HOSTMESH_LOST": count})


def agent_fields(message: str, priority: int = _INFO, extra: Mapping[str, str | int] | None = None) -> Fields:
    """An entry of the agent about itself."""
    return {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": IDENTIFIER, **(extra or {})}


def sentence(event: Event) -> str:
    """What happened, in one line: who, what, where, why."""
    what = f"{event.method} {event.path} " if event.method else ""
    took = f" in {event.duration_us / 1000:.1f} ms" if event.duration_us else ""
    tries = f", try {event.tries}" if event.tries > 1 or event.kind == "retry" else ""
    if event.kind == "token":
        return f"token: {_caller(event)}: {event.message}"
    if event.kind == "wire":
        return event.message + _REMEDIES.get(event.rule, "")
    if event.kind == "breaker":
        return f"{event.message}, by {event.rule}"
    if event.kind == "denied":
        lead = _LEADS.get(event.verdict, "denied")
        late = f"; it was open for {event.duration_us / 1e6:.3f} s and is ended" if event.duration_us else ""
        return f"{lead}: {event.message or _flow(event, what)}, by {event.rule}{late}"
    if event.verdict == "audit-deny":
        return f"would be denied, let pass (audit): {_flow(event, what)}, by {event.rule}"
    grpc = "" if event.grpc_status is None else f" (gRPC {event.grpc_status})"
    outcome = f"{event.status}{grpc}" if event.status else "connection" if event.kind == "connection" else ""
    reason = event.message and f": {event.message}"
    parts = " ".join(part for part in (event.kind if event.kind in ("error", "retry") else "", outcome) if part)
    return f"{parts or event.kind}: {_flow(event, what)}{took}{tries}{reason}"


def _flow(event: Event, what: str) -> str:
    if event.direction == "outbound":
        to = event.service or event.peer or "?"
        return f"{what}to {to} on port {event.port}"
    return f"{_caller(event)} {what}on port {event.port}"


def _caller(event: Event) -> str:
    if event.peer.startswith("spiffe://"):
        return f"{caller_name(event.peer)} ({event.peer})"
    return f"{event.peer or 'somebody'} from {event.client}" if event.client else event.peer or "somebody"


def caller_name(peer: str) -> str:
    """How a policy would name the peer: the unit's path for a unit's SPIFFE ID, else the peer itself."""
    head, found, rest = peer.partition("/unit/")
    return rest.replace("/", "@") if found and head.startswith("spiffe://") and "_x" not in rest else peer


def address(host: str, port: int) -> str:
    """``198.18.0.7:80``, ``[2001:2::7]:80``, and the bare address where there is no port."""
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unit_fields(unit: str) -> Fields:
    if not unit:
        return {"SYSLOG_IDENTIFIER": IDENTIFIER}
    return {"SYSLOG_IDENTIFIER": IDENTIFIER, "OBJECT_SYSTEMD_UNIT": unit, "HOSTMESH_UNIT": unit}


def _priority(event: Event) -> int:
    if event.kind == "error":
        return _ERROR
    denied = event.verdict == "deny" and event.kind != "token"
    if event.kind == "breaker" or denied or event.status >= 500:
        return _WARNING
    return _NOTICE if event.verdict in _LEADS or event.kind == "retry" else _INFO


@dataclass(slots=True)
class _Window:
    began: float
    written: int = 0
    suppressed: int = 0


@dataclass(slots=True)
class LineLimit:
    """At most ``lines`` of a unit and kind in ``seconds``. What is over is told in one line when the window ends.

    By kind, so that whoever knocks often, or calls often, cannot hide the line of a denial.
    """

    lines: int = 200
    seconds: float = 10.0
    total_suppressed: int = 0
    _windows: dict[tuple[str, str], _Window] = field(default_factory=dict)

    def admit(self, unit: str, kind: str, now: float) -> bool:
        """May this line be written?"""
        window = self._windows.get((unit, kind))
        if window is None:
            window = self._windows[unit, kind] = _Window(began=now)
        if window.written < self.lines:
            window.written += 1
            return True
        window.suppressed += 1
        self.total_suppressed += 1
        return False

    def due(self, now: float) -> list[tuple[str, str, int]]:
        """Windows that have ended: (unit, kind, suppressed lines) of those with any; call it now and then."""
        ended = [key for key, window in self._windows.items() if now - window.began >= self.seconds]
        over = [(*key, self._windows.pop(key).suppressed) for key in ended]
        return [(unit, kind, count) for unit, kind, count in over if count]
