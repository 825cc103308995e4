"""Chooses what a request to a service meets: the first route that fits. Twin of `proxy/core/src/route.rs`.

Works on the routes of the snapshot, so that `hostmesh explain` tells what the data plane does. Held together by
`tests/vectors/routes.json`. Random numbers are of 64 bits, drawn only where something is left to chance, in one order:
delay, abort, share, mirror.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import parse_qsl

from hostmesh.policy.authorize import Request
from hostmesh.policy.paths import AmbiguousPath, normal_path
from hostmesh.policy.templates import Captured, Template
from hostmesh.wire.snapshot import Route, RouteMatch, Share

_MASK = 2**64 - 1


class Then(StrEnum):
    """What becomes of a request. ``service``: no route fits."""

    SERVICE = "service"
    BAD_PATH = "bad-path"
    ABORT = "abort"
    REDIRECT = "redirect"
    RESPOND = "respond"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a service. query: behind the question mark; source: the caller's address."""

    request: Request
    query: str = ""
    source: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen. service: empty for the one that was called; target: empty where it goes on as it came."""

    then: Then
    route: Route | None = None
    delay_ms: int = 0
    status: int = 0
    location: str = ""
    service: str = ""
    target: str = ""
    mirrored: bool = False


def choose(routes: Sequence[Route], asked: Asked, random: Iterator[int]) -> Choice:
    """What a request meets, by these random numbers."""
    route, captured = fitting(routes, asked)
    if route is None:
        return Choice(Then.SERVICE)
    if captured is None:
        return Choice(Then.BAD_PATH, route)
    inject = route.fault
    delay = inject.delay_ms if inject and inject.delay_ms and _hits(inject.delay_percent, random) else 0
    if inject and inject.abort and _hits(inject.abort_percent, random):
        return Choice(Then.ABORT, route, delay, inject.abort)
    query = asked.query and f"?{asked.query}"
    if route.redirect:
        location = redirected(route.redirect.to, captured) + query
        return Choice(Then.REDIRECT, route, delay, route.redirect.status, location)
    if route.respond:
        return Choice(Then.RESPOND, route, delay, route.respond.status)
    path = route.rewrite.path if route.rewrite else ""
    return Choice(
        Then.FORWARD,
        route,
        delay,
        service=share(route, asked, random),
        target=Template.parse(path).fill(captured) + query if path else "",
        mirrored=route.mirror is not None and _hits(route.mirror.percent, random),
    )


def fitting(routes: Sequence[Route], asked: Asked) -> tuple[Route | None, Captured | None]:
    """The first route that fits, and what of the path it knows; None for the latter: the path has no one meaning."""
    for route in routes:
        if why_not(route.match, asked):
            continue
        if not route.match.path:
            return route, Captured({}, "")
        try:
            path = normal_path(asked.request.path)
        except AmbiguousPath:
            return route, None
        captured = Template.parse(route.match.path).matches(path)
        if captured is not None:
            return route, captured
    return None, None


def why_not(match: RouteMatch, asked: Asked) -> str:
    """What of method, headers and query does not fit; empty if all does. The path is looked at last."""
    if match.sni:
        return "for connections of TLS"
    if match.methods and asked.request.method not in match.methods:
        return f"not for method {asked.request.method}"
    for name, wanted in match.headers:
        if not _is_there([value for key, value in asked.request.headers if key == name], wanted):
            return f"header {name} is not {wanted!r}"
    parameters = parse_qsl(asked.query, keep_blank_values=True)
    for name, wanted in match.query:
        if not _is_there([value for key, value in parameters if key == name], wanted):
            return f"query {name} is not {wanted!r}"
    return ""


def _is_there(values: list[str], wanted: str) -> bool:
    return bool(values) if wanted == "*" else values == [wanted]


def sent(asked: Asked, route: Route, captured: Captured) -> Request:
    """The request as the route sends it on, which is what the called unit's rules judge."""
    request, rewrite, edits = asked.request, route.rewrite, route.request_headers
    path = Template.parse(rewrite.path).fill(captured) if rewrite and rewrite.path else request.path
    puts = [("host", rewrite.host)] if rewrite and rewrite.host else []
    puts += edits.set if edits else []
    gone = {name for name, _ in puts} | set(edits.remove if edits else ())
    kept = [(name, value) for name, value in request.headers if name not in gone]
    return replace(request, path=path, headers=(*kept, *puts, *(edits.add if edits else ())))


def redirected(to: str, captured: Captured) -> str:
    """The place that a redirect names, filled from the match."""
    origin, path = split_origin(to)
    return origin + Template.parse(path).fill(captured)


def split_origin(to: str) -> tuple[str, str]:
    """What stands before the path of a URL, and the path."""
    scheme, found, rest = to.rpartition("://")
    authority, slash, path = rest.partition("/")
    return (scheme + found + authority, slash + path) if found else ("", to)


def share(route: Route, asked: Asked, random: Iterator[int]) -> str:
    """The service of the split that takes the request; empty for the one that was called."""
    if len(route.to) < 2:
        return route.to[0].service if route.to else ""
    sticky = sticky_value(route, asked)
    number = next(random) if sticky is None else _digest(sticky)
    return _at(route.to, number)


def _at(shares: Sequence[Share], number: int) -> str:
    at = number * sum(one.weight for one in shares) >> 64
    end = 0
    for one in shares:
        end += one.weight
        if at < end:
            return one.service
    return ""


def sticky_value(route: Route, asked: Asked) -> bytes | None:
    """What is hashed to choose among the shares; None: it is left to chance."""
    return hash_value(route.sticky, asked)


def hash_value(source: str, asked: Asked) -> bytes | None:
    """What of a request stands there (``cookie:NAME``, ``header:NAME``, ``source``); None: nothing."""
    kind, _, name = source.partition(":")
    if kind == "source":
        address = ipaddress.ip_address(asked.source)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).packed
    if kind == "header":
        return next((value.encode() for key, value in asked.request.headers if key == name.lower()), None)
    lines = [value for key, value in asked.request.headers if key == "cookie"]
    pairs = [pair.strip(" \t").partition("=") for line in lines for pair in line.split(";")]
    return next((value.encode() for key, equals, value in pairs if key == name and equals), None)


def _hits(percent: float, random: Iterator[int]) -> bool:
    millionths = round(percent * 10_000)
    if millionths in (0, 1_000_000):
        return millionths > 0
    return next(random) * 1_000_000 >> 64 < millionths


def _digest(data: bytes) -> int:
    """FNV-1a and splitmix64: `proxy/core/src/balance/hash.rs`."""
    number = 0xCBF29CE484222325
    for byte in (*data, 0xFF):
        number = (number ^ byte) * 0x100000001B3 & _MASK
    number = number + 0x9E3779B97F4A7C15 & _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
