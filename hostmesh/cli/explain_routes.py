"""Tells which route of a service's policy a request takes, and what that does: by the proxy's own choice."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hostmesh.policy.authorize import Request
from hostmesh.policy.route_choice import Asked, Then, fitting, redirected, sent, share, sticky_value
from hostmesh.policy.templates import Captured
from hostmesh.wire.snapshot import Retries, Route, Service, Traffic


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


def routing(service: Service, asked: Asked | None) -> Routing | None:
    """None where policy says nothing of how the service is called; it depends on the request where none is given."""
    traffic = service.traffic
    if asked is None:
        why = "depends on the request: give METHOD and PATH"
        return Routing(Then.SERVICE, lines=(why,), targets={service.name: 1}) if traffic.routes else None
    route, captured = fitting(traffic.routes, asked)
    if route is None:
        none = ["no route fits: the service itself"] if traffic.routes else []
        said = (*none, *_limits(traffic, None))
        return Routing(Then.SERVICE, traffic.rule, said, {service.name: 1}, asked.request) if said else None
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
    lines += (*_onward(route, targets, request, asked), *_limits(traffic, route))
    return Routing(Then.FORWARD, route.rule, lines, targets, request)


def _injected(route: Route) -> Iterator[str]:
    if fault := route.fault:
        if fault.delay_ms:
            yield f"{fault.delay_percent:g} % are held back for {_seconds(fault.delay_ms)}, on purpose"
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


def _limits(traffic: Traffic, route: Route | None) -> Iterator[str]:
    """Time limit and retries in force, each with the place that says so."""
    own_time, own_retries = (route.timeout_ms, route.retries) if route else (0, None)
    if timeout := own_time or traffic.timeout_ms:
        yield f"in {_seconds(timeout)} at most, all tries together ({_place(traffic, route if own_time else None)})"
    if retries := own_retries or traffic.retries:
        yield f"{_tries(retries)} ({_place(traffic, route if own_retries else None)})"


def _place(traffic: Traffic, route: Route | None) -> str:
    return (route.rule if route else traffic.rule) or "the service's policy"


def _tries(retries: Retries) -> str:
    each = f" of {_seconds(retries.per_try_timeout_ms)} each" if retries.per_try_timeout_ms else ""
    return f"{retries.attempts} tries{each}, after {', '.join(retries.on)}, at most {retries.budget:.0%} more requests"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g} s"
