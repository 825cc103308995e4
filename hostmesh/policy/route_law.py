"""What a route may say: one law for policy files and for what hosts publish. Twin of `proxy/core/src/config_routes.rs`.

A stolen host speaks as well: what a file could not say, it can't either, and every size has its bound.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from hostmesh.names import BadName, check_service_name
from hostmesh.policy.route_choice import split_origin
from hostmesh.policy.templates import Template
from hostmesh.policy.words import hash_on, header, method, server_name
from hostmesh.wire.snapshot import Inject, Redirect, Respond, Rewrite, Route

MOST_ROUTES = 128
MOST_TARGETS = 16
MOST_FIELDS = 32
MOST_WEIGHT = 1_000_000
MOST_PENDING = 10_000
LONGEST_BODY = 4096
LONGEST_TEXT = 1024
REDIRECTIONS = (301, 302, 303, 307, 308)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_AUTHORITY = re.compile(r"[A-Za-z0-9._~:\[\]-]{1,255}\Z")
_TAKEN = frozenset({
    "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-connection", "te",
    "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "via", "x-forwarded-client-cert",
})  # fmt: skip
_ALONE = ("to", "sticky", "mirror", "rewrite", "request_headers", "response_headers", "timeout_ms", "retries", "hedge")
_OF_REQUESTS = (
    "mirror", "redirect", "rewrite", "respond", "fault", "request_headers", "response_headers", "timeout_ms", "retries",
    "hedge",
)  # fmt: skip
Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that may not be: the keys that lead to it within the route, and why."""

    keys: tuple[str, ...]
    message: str
    hint: str = ""


def wrong(route: Route) -> Iterator[Wrong]:
    """All that is wrong with a route, its retries aside; nothing if it may be."""
    yield from _tried(("name",), _check_name, route)
    yield from _match(route)
    path = _template_of(route)
    yield from _split(route)
    yield from _alone(route)
    if route.match.sni:
        yield from _by_name(route)
    if route.redirect:
        yield from _tried(("redirect", "to"), _check_redirect, route.redirect, path)
        if route.redirect.status not in REDIRECTIONS:
            yield Wrong(("redirect", "status"), f"{route.redirect.status} is no redirection", f"one of {REDIRECTIONS}")
    if route.rewrite:
        yield from _rewrite(route.rewrite, path)
    if route.respond:
        yield from _respond(route.respond)
    if route.fault:
        yield from _fault(route.fault)
    for key, edits in (("request_headers", route.request_headers), ("response_headers", route.response_headers)):
        if edits:
            yield from _fields((key, "set"), edits.set)
            yield from _fields((key, "add"), edits.add)
            yield from _fields((key, "remove"), [(name, "x") for name in edits.remove])


def placeless(route: Route) -> Route:
    """All of it but where it stands."""
    name = "" if route.name == route.rule else route.name
    return msgspec.structs.replace(route, name=name, rule="")


def fits_everything(route: Route) -> bool:
    """Whether no request goes on to the routes behind this one."""
    match = route.match
    return (
        match.path in ("", "*", "/*") and match.sni in ("", "*") and not (match.methods or match.headers or match.query)
    )


def _tried(keys: tuple[str, ...], check: Callable[..., object], *said: object) -> Iterator[Wrong]:
    try:
        check(*said)
    except BadName as error:
        yield Wrong(keys, error.message, error.hint)


def _check_name(route: Route) -> None:
    if route.name != route.rule and not _NAME.match(route.name):
        raise BadName(
            f"{route.name!r} is not a route's name", "at most 64 letters, digits, dots, dashes and underscores"
        )
    if not route.name or len(route.name) > 512 or not route.name.isprintable():
        raise BadName("the place of a rule is not FILE:LINE")


def _template_of(route: Route) -> Template | None:
    try:
        return Template.parse(route.match.path) if route.match.path else None
    except BadName:  # which `_match` tells
        return None


def _match(route: Route) -> Iterator[Wrong]:
    match = route.match
    if match.path:
        yield from _tried(("match", "path"), Template.parse, match.path)
    yield from _bounded(("match", "path"), match.path, LONGEST_TEXT)
    yield from _many(("match", "methods"), match.methods)
    for text in match.methods:
        yield from _tried(("match", "methods"), method, text)
    yield from _many(("match", "headers"), match.headers)
    yield from _twice(("match", "headers"), [name for name, _ in match.headers])
    for name, value in match.headers:
        yield from _tried(("match", "headers", name), header, name, value)
        yield from _bounded(("match", "headers", name), name + value, LONGEST_TEXT)
    yield from _many(("match", "query"), match.query)
    for name, value in match.query:
        if not name or not value.isascii() or not name.isascii() or not (name + value).isprintable():
            yield Wrong(("match", "query", name), f"{name}={value!r} is no parameter", "visible characters of ASCII")
        yield from _bounded(("match", "query", name), name + value, LONGEST_TEXT)


def _split(route: Route) -> Iterator[Wrong]:
    yield from _many(("to",), route.to, MOST_TARGETS)
    yield from _twice(("to",), [share.service for share in route.to])
    for share in route.to:
        yield from _tried(("to", share.service), check_service_name, share.service)
        if not 0 <= share.weight <= MOST_WEIGHT:
            yield Wrong(("to", share.service), f"{share.weight} is not a weight", f"0 to {MOST_WEIGHT}")
    if route.to and not any(share.weight for share in route.to):
        yield Wrong(("to",), "no service has a weight: none would ever be chosen")
    if route.sticky:
        yield from _tried(("sticky",), hash_on, route.sticky)
        yield from _bounded(("sticky",), route.sticky, LONGEST_TEXT)
    if route.sticky and len(route.to) < 2:
        yield Wrong(("sticky",), "there is nothing to choose between", "to = { inventory-v2 = 10, inventory = 90 }")
    if mirror := route.mirror:
        yield from _tried(("mirror", "to"), check_service_name, mirror.to)
        yield from _percent(("mirror", "percent"), mirror.percent)
        if not 1 <= mirror.max_pending <= MOST_PENDING:
            yield Wrong(("mirror", "max_pending"), f"{mirror.max_pending} is not in 1..{MOST_PENDING}")


def _alone(route: Route) -> Iterator[Wrong]:
    """What is answered here goes nowhere, and nothing is done to it on its way."""
    answers = [key for key in ("redirect", "respond") if getattr(route, key)]
    others = [*answers[1:], *(key for key in _ALONE if getattr(route, key))] if answers else []
    for key in others:
        word = key.removesuffix("_ms")
        yield Wrong((word,), f"{word!r} beside {answers[0]!r} would never be used", "make two routes of it")


def _by_name(route: Route) -> Iterator[Wrong]:
    """Of TLS nothing is known but the server that is asked for, and nothing can be done to what it carries."""
    yield from _tried(("match", "sni"), server_name, route.match.sni)
    for key in ("path", "methods", "headers", "query"):
        if getattr(route.match, key):
            yield Wrong(("match", key), f"{key!r} beside 'sni' would never fit", "make two routes of it")
    for key in _OF_REQUESTS:
        if getattr(route, key):
            word = key.removesuffix("_ms")
            yield Wrong((word,), f"{word!r} beside 'sni' would never be used", "it is for requests, which TLS hides")
    if route.sticky not in ("", "source"):
        yield Wrong(("sticky",), f"{route.sticky!r} is of requests, which TLS hides", 'sticky = "source"')
    if not route.to:
        yield Wrong(("match", "sni"), "the route leads nowhere", 'to = "inventory-v2"')


def _check_redirect(redirect: Redirect, path: Template | None) -> None:
    origin, rest = split_origin(redirect.to)
    scheme, found, authority = origin.partition("://")
    if found and (scheme not in ("http", "https") or not _AUTHORITY.match(authority)):
        raise BadName(f"{origin!r} is no place to go", "for example: https://shop.example.org/products/{id}")
    if not rest.startswith("/") or len(redirect.to) > LONGEST_TEXT:
        raise BadName(f"{redirect.to!r} has no path", "for example: https://shop.example.org/")
    _check_filled(rest, path)


def _check_filled(text: str, path: Template | None) -> None:
    if not text.startswith("/"):
        raise BadName(f"{text!r} is not a path: it begins with a slash", f"did you mean {'/' + text!r}?")
    if why := Template.parse(text).why_not_from(path):
        raise BadName(f"{text!r} cannot be filled: {why}", "match = { path = … } names what there is")


def _rewrite(rewrite: Rewrite, path: Template | None) -> Iterator[Wrong]:
    if rewrite.path:
        yield from _tried(("rewrite", "path"), _check_filled, rewrite.path, path)
        yield from _bounded(("rewrite", "path"), rewrite.path, LONGEST_TEXT)
    if rewrite.host and not _AUTHORITY.match(rewrite.host):
        yield Wrong(("rewrite", "host"), f"{rewrite.host!r} is not a host", "for example: inventory-v2")


def _respond(respond: Respond) -> Iterator[Wrong]:
    if not 200 <= respond.status <= 599:
        yield Wrong(("respond", "status"), f"{respond.status} is not the status of an answer", "200 to 599")
    if respond.body and respond.status in (204, 304):
        yield Wrong(("respond", "body"), f"an answer of status {respond.status} has no body")
    yield from _bounded(("respond", "body"), respond.body, LONGEST_BODY)
    yield from _fields(("respond", "headers"), respond.headers)


def _fault(fault: Inject) -> Iterator[Wrong]:
    if fault.abort and not 400 <= fault.abort <= 599:
        yield Wrong(("fault", "abort"), f"{fault.abort} is no status of an error", "400 to 599")
    if not 0 <= fault.delay_ms <= 3_600_000:
        yield Wrong(("fault", "delay"), f"{fault.delay_ms} ms is too long to be held back", "at most an hour")
    yield from _percent(("fault", "delay_percent"), fault.delay_percent)
    yield from _percent(("fault", "abort_percent"), fault.abort_percent)


def _fields(keys: tuple[str, ...], fields: Iterable[Field]) -> Iterator[Wrong]:
    fields = list(fields)
    yield from _many(keys, fields)
    yield from _twice(keys, [name for name, _ in fields])
    for name, value in fields:
        yield from _tried((*keys, name), _check_field, name, value)


def _check_field(name: str, value: str) -> None:
    header(name, value)
    plain = name.lower().replace("_", "-")  # many applications take these for the same field
    if plain in _TAKEN or plain.startswith("x-hostmesh-"):
        hint = (
            "rewrite = { host = … } names another host" if plain == "host" else "it frames, routes or attests a message"
        )
        raise BadName(f"no policy may touch {name!r}", hint)
    if len(name) + len(value) > LONGEST_TEXT:
        raise BadName(f"{name!r} and its value have {len(name) + len(value)} characters", f"at most {LONGEST_TEXT}")


def _percent(keys: tuple[str, ...], percent: float) -> Iterator[Wrong]:
    if not 0 <= percent <= 100:
        yield Wrong(keys, f"{percent:g} is not in 0..100")


def _many(keys: tuple[str, ...], said: Iterable[object], most: int = MOST_FIELDS) -> Iterator[Wrong]:
    if (count := len(list(said))) > most:
        yield Wrong(keys, f"{count} are too many", f"at most {most}")


def _twice(keys: tuple[str, ...], names: Iterable[str]) -> Iterator[Wrong]:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            yield Wrong(keys, f"{name!r} stands here twice", "case does not count")
        seen.add(name.lower())


def _bounded(keys: tuple[str, ...], text: str, most: int) -> Iterator[Wrong]:
    if len(text.encode()) > most:
        yield Wrong(keys, f"{len(text.encode())} bytes are too many", f"at most {most}")
