"""Judges a request that was recorded by a policy that is not in force: would it fare otherwise? Pure.

Only what is recorded can be asked about: never headers, queries or tokens. Where they decide, it is said so: each
request is judged twice, as if they spoke for it and as if they spoke against it, and stands where both agree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from hostmesh.policy import authorize
from hostmesh.policy.authorize import Decision, Destination, Peer, Plaintext, Request, Verdict
from hostmesh.policy.route_choice import Asked, fitting
from hostmesh.wire.snapshot import InboundRule, Route, Unit

_CHANGING = re.compile(r"[0-9a-fA-F-]{16,}|.*[0-9].*")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request or connection as a journal has it. route: its name, empty for none; method: empty if it was opaque."""

    unit: str
    direction: str
    peer: str
    client: str
    service: str
    port: int
    method: str
    path: str
    passed: bool
    rule: str
    route: str


class Change(StrEnum):
    """What would be otherwise. ``unknown``: what decides is not recorded."""

    NONE = "none"
    DENIED = "denied"
    ALLOWED = "allowed"
    ROUTED = "routed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one request. rule: file and line that decides now; why: what is not known."""

    change: Change
    rule: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class NewPolicies:
    """The policies by which is judged. units: whose policy is among them, by name; routes: by service.

    known_routes: name of a route to the services that have one of that name, in these policies or in those in force.
    """

    units: Mapping[str, Unit]
    routes: Mapping[str, list[Route]] = field(default_factory=dict)
    known_routes: Mapping[str, frozenset[str]] = field(default_factory=dict)


def judge(recorded: Recorded, by: NewPolicies) -> Outcome | None:
    """None where none of the policies has a word in it."""
    unit = by.units.get(recorded.unit)
    outcome = _judge_access(recorded, unit) if unit else None
    if outcome and outcome.change is not Change.NONE:
        return outcome
    routed = _judge_route(recorded, by) if recorded.direction == "outbound" and recorded.method else None
    return routed if routed and (routed.change is not Change.NONE or outcome is None) else outcome


def _judge_access(recorded: Recorded, unit: Unit) -> Outcome:
    if recorded.direction == "outbound":
        if not recorded.service:
            return Outcome(Change.UNKNOWN, why="where it went outside the mesh is not recorded")
        decision = authorize.outbound(unit, Destination(recorded.port, service=recorded.service))
        return _compared(recorded, decision, decision)
    caller: Peer | Plaintext = Peer(recorded.peer)
    if recorded.peer == "plaintext":
        caller = Plaintext(recorded.client, local=recorded.direction == "local")
    request = Request(recorded.method, recorded.path) if recorded.method else None
    against, for_it = (
        authorize.inbound(one, caller, recorded.port, request) for one in (_strictest(unit), _laxest(unit))
    )
    return _compared(recorded, against, for_it)


def _compared(recorded: Recorded, against: Decision, for_it: Decision) -> Outcome:
    if Verdict.ASKS_REQUEST in (against.verdict, for_it.verdict):
        return Outcome(Change.UNKNOWN, for_it.rule, "of a connection that was carried unread no request is recorded")
    passes = for_it.verdict.passes
    if against.verdict.passes != passes:
        return Outcome(Change.UNKNOWN, for_it.rule, f"{_asking(against, for_it)} asks for headers or a token")
    if passes == recorded.passed:
        return Outcome(Change.NONE, for_it.rule)
    return Outcome(Change.ALLOWED, against.rule) if passes else Outcome(Change.DENIED, for_it.rule)


def _asking(against: Decision, for_it: Decision) -> str:
    """The rule by which both differ: one that would allow, or else one that would deny."""
    return (
        against.rule if any(one.rule == against.rule and one.kind == "deny" for one in against.trace) else for_it.rule
    )


def _asks_more(rule: InboundRule) -> bool:
    return bool(rule.headers or rule.jwt)


def _without(rule: InboundRule) -> InboundRule:
    return msgspec.structs.replace(rule, headers=[], jwt=None)


def _strictest(unit: Unit) -> Unit:
    """As if no header or token fitted what allows, and each fitted what denies."""
    allow = [rule for rule in unit.allow if not _asks_more(rule)]
    return msgspec.structs.replace(unit, allow=allow, deny=[_without(rule) for rule in unit.deny])


def _laxest(unit: Unit) -> Unit:
    """As if each header and token fitted what allows, and none fitted what denies."""
    deny = [rule for rule in unit.deny if not _asks_more(rule)]
    return msgspec.structs.replace(unit, allow=[_without(rule) for rule in unit.allow], deny=deny)


def _judge_route(recorded: Recorded, by: NewPolicies) -> Outcome | None:
    """Which route it would take; None where none of the policies says so."""
    called = {recorded.service} if not recorded.route else by.known_routes.get(recorded.route, frozenset[str]())
    if recorded.route and len(called) != 1:
        return (
            Outcome(Change.UNKNOWN, why=f"which service has route {recorded.route!r} is not known") if called else None
        )
    [service] = called
    if service not in by.routes:
        return None
    asked = Asked(Request(recorded.method, recorded.path))
    route, _ = fitting([_bare(route) for route in by.routes[service]], asked)
    if route is None:
        return Outcome(Change.ROUTED, f"{service}: no route") if recorded.route else Outcome(Change.NONE)
    original = next(one for one in by.routes[service] if one.rule == route.rule)
    if original.match.headers or original.match.query:
        return Outcome(Change.UNKNOWN, route.rule, f"the route at {route.rule} asks for headers or the query")
    if route.name == recorded.route:
        return Outcome(Change.NONE, route.rule)
    return Outcome(Change.ROUTED, route.rule)


def _bare(route: Route) -> Route:
    return msgspec.structs.replace(route, match=msgspec.structs.replace(route.match, headers=[], query=[]))


def template(path: str) -> str:
    """The path with ``{}`` for each segment that looks like one of many: it has a digit, or is a long word of hex."""
    return "/".join("{}" if _CHANGING.fullmatch(segment) else segment for segment in path.split("/"))
