"""Turns journal entries of the agent into the requests that they stand for; undoes `lines.py`."""

import ipaddress
from collections.abc import Mapping

from hostmesh.policy.hindsight import Recorded

_PASSED = {"request", "connection", "error"}
_NOT_BY_POLICY = "builtin:"
_BEYOND = {"limited", "refused", "no-verdict"}  # flags: limits and gatekeepers see what the rules let in
_UNJUDGED = {"mirrored", "shed"}  # flags: a copy, and what an overloaded proxy refused unread


def recorded(entry: Mapping[str, str], *, is_all: bool) -> Recorded | None:
    """None for what is no request, or stands there twice. is_all: each request of the unit has a line of its own."""
    kind, verdict = entry.get("HOSTMESH_KIND", ""), entry.get("HOSTMESH_VERDICT", "")
    method, port = entry.get("HOSTMESH_METHOD", ""), entry.get("HOSTMESH_PORT", "")
    rule = entry.get("HOSTMESH_RULE", "")
    flag, passed = entry.get("HOSTMESH_FLAG", ""), kind in _PASSED
    if kind == "denied":
        if verdict == "audit-allow" or (verdict == "audit-deny" and is_all) or rule.startswith(_NOT_BY_POLICY):
            return None
        passed = verdict == "audit-deny" or flag in _BEYOND
    elif not passed or (kind == "error" and not method) or flag in _UNJUDGED:
        return None
    if not port:
        return None
    return Recorded(
        unit=entry.get("HOSTMESH_UNIT", ""),
        direction=entry.get("HOSTMESH_DIRECTION") or _direction(entry, rule),
        peer=entry.get("HOSTMESH_PEER", ""),
        client=entry.get("HOSTMESH_CLIENT", ""),
        service=entry.get("HOSTMESH_SERVICE", ""),
        port=int(port),
        method=method,
        path=entry.get("HOSTMESH_PATH", ""),
        passed=passed,
        rule=rule,
        route=entry.get("HOSTMESH_ROUTE", ""),
    )


def _direction(entry: Mapping[str, str], rule: str) -> str:
    """Of what the kernel refused, whose entries do not say so."""
    if rule.endswith(":no-outbound"):
        return "outbound"
    client = entry.get("HOSTMESH_CLIENT", "")
    return "local" if client and ipaddress.ip_address(client).is_loopback else "inbound"
