"""Tells which route of a service's policy a request takes, and what that does: by the proxy's own choice."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hostmesh.cli.explain_traffic import limits, seconds
from hostmesh.policy.authorize import Request
from hostmesh.policy.route_choice import Asked, Then, fitting, redirected, sent, share, sticky_value
from hostmesh.policy.templates import Captured
from hostmesh.wire.snapshot import Route, Service


@dataclass(frozen=True, slots=True)
class Routing:
    """What a request to a service meets. lines: for a person. targets: services to which it may go, with weights.

    request: as it goes on; None: it goes nowhere, or is not known.
    """

    then: Then
    rule: str = ""
    lines: tuple[str, ...] = ()
    targets: dict[str, int] = field(default_factory=dict)
    request: Request | None = None


def routing(service: Service, asked: Asked | None) -> Routing:
    """It depends on the request where there are routes and none is given."""
    traffic = service.traffic
    if asked is None:
        depends = ("which route it takes depends on the request: give METHOD and PATH",) if traffic.routes else ()
        return Routing(Then.SERVICE, traffic.rule, (*depends, *limits(traffic, None)), {service.name: 1})
    route, captured = fitting(traffic.routes, asked)
    if route is None:
        none = ["no route fits: the service itself"] if traffic.routes else []
        said = (*none, *limits(traffic, None))
        return Routing(Then.SERVICE, traffic.rule, said, {service.name: 1}, asked.request)
    named = f"route {route.name}, by {route.rule}" if route.name != route.rule else f"the route at {route.rule}"
    if captured is None:
        return Routing(Then.BAD_PATH, route.rule, (f"{named}: REFUSED with 400, the path has no one meaning",))
    lines: tuple[str, ...] = (named, *_injected(route), *_answered(route, captured, asked))
    if route.redirect or route.respond:
        return Routing(Then.REDIRECT if route.redirect else Then.RESPOND, route.rule, lines)
    targets = {one.service: one.weight for one in route.to if one.weight} or {service.name: 1}
    if len(targets) > 1 and sticky_value(route, asked) is not None:
        targets = {share(route, asked, iter(())): 1}
    request = sent(asked, route, captured)
    lines += (*_onward(route, targets, request, asked), *limits(traffic, route))
    return Routing(Then.FORWARD, route.rule, lines, targets, request)


def _injected(route: Route) -> Iterator[str]:
    if fault := route.fault:
        if fault.delay_ms:
            yield f"{fault.delay_percent:g} % are held back for {seconds(fault.delay_ms)}, on purpose"
        if fault.abort:
            yield f"{fault.abort_percent:g} % are answered with {fault.abort}, on purpose"


def _answered(route: Route, captured: Captured, asked: Asked) -> Iterator[str]:
    if route.redirect:
        query = asked.query and f"?{asked.query}"
        yield f"answered with {route.redirect.status} to {redirected(route.redirect.to, captured)}{query}"
    if route.respond:
        yield f"answered with {route.respond.status}, {len(route.respond.body.encode())} bytes"


def _onward(route: Route, targets: dict[str, int], request: Request, asked: Asked) -> Iterator[str]:
    whole = sum(targets.values())
    shares = [
        f"{name} ({weight / whole * 100:.4g} %)" if len(targets) > 1 else name for name, weight in targets.items()
    ]
    if len(route.to) > 1:
        by = route.sticky if len(targets) == 1 else "chance"
        yield f"to {' or '.join(shares)}, by {by}"
    else:
        yield f"to {shares[0]}"
    if route.rewrite:
        host = f", of host {route.rewrite.host}" if route.rewrite.host else ""
        path = request.path if request.path != asked.request.path else ""
        yield f"asked for{f' as {path}' if path else ''}{host}"
    for word, edits in (("request", route.request_headers), ("response", route.response_headers)):
        if edits:
            done = [*(f"{n} is set" for n, _ in edits.set), *(f"{n} is added" for n, _ in edits.add)]
            yield f"headers of the {word}: {', '.join([*done, *(f'{name} is removed' for name in edits.remove)])}"
    if route.mirror:
        yield f"a copy of {route.mirror.percent:g} % goes to {route.mirror.to}, {route.mirror.max_pending} at once"
