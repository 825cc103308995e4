"""Turns a question into the answer that the data plane would give, rule by rule: by its own snapshot."""

import argparse
import ipaddress
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from hostmesh.cli import claims, host, show
from hostmesh.cli.agent_link import AgentAway, ask
from hostmesh.cli.explain_routes import Routing, routing
from hostmesh.cli.explain_traffic import choice, plain_way, tokens, way
from hostmesh.errors import HostmeshError
from hostmesh.names import SpiffeId, UnitName
from hostmesh.policy import authorize
from hostmesh.policy.authorize import Decision, Destination, Peer, Plaintext, Request, Verdict
from hostmesh.policy.paths import path_of_target
from hostmesh.policy.route_choice import Asked
from hostmesh.wire.agent_control import GetPlan, PlanInForce
from hostmesh.wire.snapshot import Snapshot, Unit

WORDS = {
    Verdict.ALLOW: "allowed",
    Verdict.DENY: "REFUSED",
    Verdict.BAD_PATH: "REFUSED with 400",
    Verdict.NO_TOKEN: "REFUSED with 401: there is no token (--claim NAME=VALUE: as if one said so)",
    Verdict.BAD_TOKEN: "REFUSED with 401",
    Verdict.AUDIT_DENY: "let pass by audit mode, would be refused",
    Verdict.ASKS_REQUEST: "depends on the request: give METHOD and PATH",
}


class Answer(NamedTuple):
    """One part of the answer: what was judged, and how; None where this host cannot know, or nothing is judged."""

    what: str
    decision: Decision | None
    why_not: str = ""
    routing: Routing | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh explain CALLER DESTINATION [METHOD PATH]`."""
    parser.add_argument("caller", metavar="CALLER", help="a unit, a SPIFFE ID, an address without identity, or local")
    parser.add_argument("destination", metavar="DESTINATION", help="a service, unit, host or address; :PORT if several")
    parser.add_argument("method", nargs="?", metavar="METHOD")
    parser.add_argument("path", nargs="?", metavar="PATH")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    claims.configure(parser)
    show.add_json(parser)
    parser.set_defaults(do=explain)


def explain(arguments: argparse.Namespace) -> int:
    """Exit code 0 if nothing that this host knows refuses, else 1."""
    if arguments.method and not arguments.path:
        raise HostmeshError("a method needs a path", "for example: hostmesh explain orders inventory GET /products/7")
    snapshot, source = _snapshot()
    asked = _asked(arguments.method, arguments.path, arguments.header)
    if asked:
        asked = replace(asked, request=replace(asked.request, token=claims.said(arguments)))
    caller = _caller(snapshot, arguments.caller)
    name, port = _destination(arguments.destination)
    answers = _answers(snapshot, caller, name, port, asked)
    if arguments.json:
        show.print_json({"source": source, "answers": [_told(answer) for answer in answers]})
    else:
        print("\n\n".join(map(_text, answers)) + f"\n\njudged by {source}")
    decided = [answer.decision for answer in answers if answer.decision]
    if not decided:
        raise HostmeshError(
            f"this host knows neither {arguments.caller} nor {name}", "ask on a host that runs one of them"
        )
    return 0 if all(d.verdict.passes for d in decided) else 1


def _snapshot() -> tuple[Snapshot, str]:
    """What is in force, and where it was had from; without an agent, what the policy files would compile to."""
    known = host.settings()
    try:
        return ask(known, GetPlan(1), PlanInForce).snapshot, "the plan in force"
    except AgentAway:
        from hostmesh.plan.facts import HostFacts  # noqa: PLC0415
        from hostmesh.plan.snapshot import snapshot  # noqa: PLC0415
        from hostmesh.policy.validate import load  # noqa: PLC0415

        policies = load(host.policy_texts([Path(known.paths.policies)]))
        numbers = {policy.unit: index for index, policy in enumerate(policies, 1)}
        facts = HostFacts(host.host_name(known), (), {}, numbers)
        return snapshot(known, policies, facts, [], []), "the policy files of this host alone: no agent answers"


def _caller(snapshot: Snapshot, text: str) -> Peer | Plaintext:
    if text == "local":
        return Plaintext("127.0.0.1", local=True)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        return Plaintext(text, local=address.is_loopback)
    if text.startswith("spiffe:"):
        return Peer(str(SpiffeId.parse(text)))
    return Peer(str(SpiffeId.of_unit(snapshot.trust_domain, UnitName.parse(text))))


def _destination(text: str) -> tuple[str, int]:
    """Name or address, and port; 0 where none is given."""
    match = re.fullmatch(r"\[(.+)\](?::([0-9]+))?|([^:]+)(?::([0-9]+))?|(.*:.*:.*)", text)
    if not match:
        raise HostmeshError(f"{text!r} is no destination", "inventory, inventory:8080, 198.51.100.7:443")
    return (match[1] or match[3] or match[5]), int(match[2] or match[4] or 0)


def _asked(method: str | None, target: str | None, headers: list[str]) -> Asked | None:
    if not method or not target:
        return None
    pairs = [header.partition(":") for header in headers]
    fields = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return Asked(Request(method, path_of_target(target), fields), target.partition("?")[2])


def _answers(snapshot: Snapshot, caller: Peer | Plaintext, name: str, port: int, asked: Asked | None) -> list[Answer]:
    """The caller's part, if it is of this host; what the service's policy makes of the call; the callee's part."""
    callee = _resolve(snapshot, name, port)
    who = caller.spiffe_id if isinstance(caller, Peer) else f"{caller.address} without identity"
    calling = next((unit for unit in snapshot.units if unit.spiffe_id == who), None)
    answers = []
    if calling:
        to = Destination(callee.port, service=callee.service) if callee.service else _outside(name, callee.port)
        question = f"may {calling.unit} call {name}, port {callee.port}?"
        answers.append(Answer(question, authorize.outbound(calling, to)))
    elif isinstance(caller, Peer):
        answers.append(Answer(f"may {who} call {name}?", None, "not a unit of this host: its policy is where it runs"))
    request = asked.request if asked else None
    service = next((one for one in snapshot.services if one.name == callee.service), None)
    if service is None or isinstance(caller, Plaintext):
        if callee.unit and isinstance(caller, Plaintext):
            answers.append(Answer("which way does it take?", None, plain_way(snapshot, callee.unit)))
        return [*answers, *_come_in(callee, caller, who, request)]
    found = routing(service, asked)
    if found.lines:
        answers.append(Answer(f"what does a call of {callee.service}, port {callee.port}, meet?", None, routing=found))
    for target in found.targets:
        there = callee
        if target != callee.service:
            elsewhere = _elsewhere(snapshot, target, callee.port)
            if elsewhere is None:
                answers.append(Answer(f"where is {target}?", None, "no such service, or not that port: 503, no-route"))
                continue
            there = elsewhere
            if calling:
                question = f"may {calling.unit} call {target}, port {there.port}?"
                answers.append(Answer(question, authorize.outbound(calling, Destination(there.port, service=target))))
        answers += _on_the_way(snapshot, target, asked)
        answers += _come_in(there, caller, who, found.request)
    return answers


def _on_the_way(snapshot: Snapshot, target: str, asked: Asked | None) -> list[Answer]:
    service = next((one for one in snapshot.services if one.name == target), None)
    if service is None:
        return []
    chosen = "\n    ".join(choice(snapshot, service, asked))
    return [
        Answer(f"which endpoint of {target} does it go to?", None, chosen),
        Answer("which way does it take?", None, way(snapshot, service)),
    ]


def _come_in(callee: "Callee", caller: Peer | Plaintext, who: str, request: Request | None) -> list[Answer]:
    if callee.unit:
        question = f"may {who} come to {callee.unit.unit}, port {callee.target}?"
        if request:
            request = replace(request, token=claims.as_token(callee.unit, request.token))
        decision = authorize.inbound(callee.unit, caller, callee.target, request)
        if decision.verdict.passes:
            limits = authorize.limits(callee.unit, caller, callee.target, request)
            asked = authorize.gatekeeper(callee.unit, callee.target)
            decision = replace(decision, trace=(*decision.trace, *limits, *asked))
        judged = Answer(question, decision)
        if not callee.unit.jwt:
            return [judged]
        return [Answer(f"whose tokens does {callee.unit.unit} believe?", None, tokens(callee.unit.jwt)), judged]
    if callee.service:
        return [Answer(f"may {who} come to {callee.service}?", None, f"served by {callee.served_by}: ask there")]
    return []


def _elsewhere(snapshot: Snapshot, target: str, port: int) -> "Callee | None":
    """Where a route leads: the port of the same number, else the only one."""
    service = next((one for one in snapshot.services if one.name == target), None)
    if service is None:
        return None
    numbers = {one.port: one.target for one in service.ports}
    if port not in numbers and len(set(numbers.values())) != 1:
        return None
    return _resolve(snapshot, target, port if port in numbers else min(numbers))


class Callee(NamedTuple):
    """What a destination means. service: empty for what is no service. port: as callers say it; target: as declared."""

    port: int
    target: int
    service: str = ""
    unit: Unit | None = None
    served_by: str = "nobody"


def _resolve(snapshot: Snapshot, name: str, port: int) -> Callee:
    bare = name.removesuffix(".mesh")
    unit = next((u for u in snapshot.units if u.unit in (bare, f"{bare}.service")), None)
    named = unit.service if unit else bare
    service = next((s for s in snapshot.services if s.name == named or name in s.vips), None)
    unit = unit or next((u for u in snapshot.units if u.service == (service.name if service else bare)), None)
    if service is None and unit is None:
        return Callee(_only([], name, port), port)
    targets = (
        {p.port: p.target for p in service.ports} if service else {p.port: p.port for p in unit.ports} if unit else {}
    )
    port = _only(sorted(targets), name, port)
    endpoints = service.endpoints if service else []
    served_by = ", ".join(sorted({f"{endpoint.unit} on {endpoint.host}" for endpoint in endpoints})) or "nobody"
    found = service.name if service else named
    return Callee(port, targets.get(port, port), found, unit, served_by)


def _only(ports: list[int], name: str, port: int) -> int:
    """The port that is meant: the one given, else 80 where it is one of them, as for a URL, else the only one."""
    if port:
        return port
    if 80 in ports:
        return 80
    if len(ports) != 1:
        known = f"its ports: {', '.join(map(str, ports))}" if ports else f"no service of that name here; {name}:443"
        raise HostmeshError(f"which port of {name}?", known)
    return ports[0]


def _outside(name: str, port: int) -> Destination:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return Destination(port, host=name.lower().rstrip("."))
    return Destination(port, address=name)


def _told(answer: Answer) -> dict[str, object]:
    if answer.routing:
        return {"question": answer.what, **asdict(answer.routing)}
    if answer.decision is None:
        return {"question": answer.what, "verdict": None, "why": answer.why_not}
    return {"question": answer.what, **asdict(answer.decision)}


def _text(answer: Answer) -> str:
    decision = answer.decision
    if answer.routing:
        return "\n    ".join([answer.what, *answer.routing.lines])
    if decision is None:
        return f"{answer.what}\n    {answer.why_not}"
    rows = [(f"    {tried.kind}", "=>" if tried.fits else "", tried.rule, tried.why) for tried in decision.trace]
    tried = show.table(("    TRIED", "", "RULE", ""), rows) if rows else "    no rule to try"
    audited = f"\n    in force, {decision.audited} would decide otherwise (audit)" if decision.audited else ""
    return f"{answer.what}\n    {WORDS[decision.verdict]}, by {decision.rule}{audited}\n\n{tried}"
