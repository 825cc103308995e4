"""Decides which records of a tap somebody wants to see."""

from hostmesh.observe.lines import caller_name
from hostmesh.policy.authorize import glob_matches
from hostmesh.wire.agent_control import Wanted
from hostmesh.wire.proxy_control import Event

KINDS = frozenset({"request", "connection", "denied", "retry", "error"})
"""What a unit's traffic is told by; the rest of its lines (tokens' keys, breakers, the wire) belongs to the journal."""


def caller(event: Event) -> str:
    """Who called, as a policy names it; for a caller without identity its address."""
    if event.direction == "outbound":
        return event.unit.removesuffix(".service")
    return event.client if event.peer == "plaintext" else caller_name(event.peer)


def callee(event: Event) -> str:
    """Who was called: the service, else who answered."""
    return event.service or (caller_name(event.peer) if event.direction == "outbound" else event.unit)


def is_denied(event: Event) -> bool:
    """Refused by a policy, or would be."""
    return event.kind == "denied"


def is_failed(event: Event) -> bool:
    """It did not come to a good end: nothing came, or the answer says so."""
    return event.kind in ("error", "retry") or event.status >= 500 or bool(event.grpc_status)


def fits(event: Event, wanted: Wanted) -> bool:
    """Is this record wanted?"""
    if event.kind not in KINDS or event.duration_us < wanted.slow_us:
        return False
    if (wanted.failed or wanted.denied) and not (
        (wanted.failed and is_failed(event)) or (wanted.denied and is_denied(event))
    ):
        return False
    return (
        _any(wanted.callers, caller(event))
        and _any(wanted.callees, callee(event))
        and (not wanted.methods or event.method in wanted.methods)
        and _any(wanted.paths, event.path)
        and (not wanted.statuses or any(_is_of(event.status, status) for status in wanted.statuses))
    )


def _any(patterns: list[str], text: str) -> bool:
    return not patterns or any(glob_matches(pattern, text) for pattern in patterns)


def _is_of(status: int, pattern: str) -> bool:
    return len(pattern) == 3 and all(want in ("x", digit) for want, digit in zip(pattern, f"{status:03}", strict=True))
