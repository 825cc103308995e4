"""Turns a record of a tap into one line for a person."""

from datetime import datetime

from hostmesh.observe.tapped import callee, caller
from hostmesh.wire.proxy_control import Event

_VERDICTS = {"deny": "DENIED", "audit-deny": "would be denied (audit)", "audit-allow": "DENIED, allowed in audit"}


def line(event: Event) -> str:
    """When, who whom, what, what became of it, by which rule; then what else is known of it."""
    when = datetime.fromtimestamp(event.time_ns / 1e9).astimezone().strftime("%H:%M:%S.%f")[:-3]
    parts = [when, f"{caller(event)} > {callee(event)}:{event.port}", *_asked(event), *_became(event), *_more(event)]
    return "  ".join(part for part in parts if part)


def _asked(event: Event) -> tuple[str, ...]:
    if event.method:
        return (f"{event.method} {event.path}",)
    return (event.protocol,)


def _became(event: Event) -> tuple[str, ...]:
    status = str(event.status) if event.status else ""
    grpc = "" if event.grpc_status is None else f"grpc-status {event.grpc_status}"
    took = f"{event.duration_us / 1000:.1f} ms" if event.duration_us else ""
    verdict = (
        _VERDICTS.get(event.verdict, "") if event.kind == "denied" else event.kind if event.kind != "request" else ""
    )
    by = f"by {event.rule}" if event.rule else ""
    return status, grpc, took, verdict, by


def _more(event: Event) -> tuple[str, ...]:
    moved = f"{event.bytes_in} B in, {event.bytes_out} B out" if event.kind == "connection" else ""
    return (
        event.route and f"route {event.route}",
        event.endpoint and f"at {event.endpoint}",
        f"try {event.tries}" if event.tries > 1 or event.kind == "retry" else "",
        event.flag and f"flag {event.flag}",
        moved,
        event.trace_id and f"trace {event.trace_id}",
        event.message,
    )
