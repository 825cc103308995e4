"""Reads ``[[traffic.route]]``: what some requests to a service meet, in the words of the snapshot."""

from collections.abc import Mapping, Sequence

from hostmesh.errors import Place
from hostmesh.policy import route_law
from hostmesh.policy import schema_routes as schema
from hostmesh.policy.findings import Code
from hostmesh.policy.keys import Table
from hostmesh.policy.model import Protocol, Traffic
from hostmesh.policy.read import Reader
from hostmesh.policy.source import Node
from hostmesh.policy.traffic import as_sent, hedge_as_sent, hedge_of, retries_of
from hostmesh.wire.snapshot import HeaderEdits, Inject, Mirror, Redirect, Respond, Rewrite, Route, RouteMatch, Share

Field = tuple[str, str]


def routes(read: Reader, node: Node | None, service: Traffic, spoken: Sequence[Protocol]) -> tuple[Route, ...]:
    """The list, in its order. service: what holds where a route says nothing else; spoken: on the unit's ports."""
    items = read.tables(node, schema.ROUTE.name)
    if len(items) > route_law.MOST_ROUTES:
        message = f"{len(items)} routes are too many"
        read.findings.add(Code.BAD_VALUE, items[-1].place, message, f"at most {route_law.MOST_ROUTES}")
    found = [_Reading(read, item).route(service) for item in items]
    for item, route in zip(items, found, strict=True):
        _check_port(read, item, route, spoken)
    names: dict[str, str] = {}
    last = {True: "", False: ""}  # of connections of TLS, and of requests
    for item, route in zip(items, found, strict=True):
        by_name = bool(route.match.sni)
        if route.name in names:
            message = f"a route is named {route.name!r} already: {names[route.name]}"
            read.findings.add(Code.DUPLICATE, item.place, message, "its name tells it from the others in the journal")
        if last[by_name]:
            message = f"this route is never reached: the one at {last[by_name]} fits everything"
            read.findings.add(Code.BAD_VALUE, item.place, message, "the first that fits is taken: put it before")
        names.setdefault(route.name, route.rule)
        last[by_name] = last[by_name] or (route.rule if route_law.fits_everything(route) else "")
    return tuple(found)


def _check_port(read: Reader, item: Node, route: Route, spoken: Sequence[Protocol]) -> None:
    if route.match.sni and not any(protocol.can_be_tls for protocol in spoken):
        message = "a route by sni needs a port that speaks tls or auto, and the unit has none"
        read.findings.add(Code.BAD_VALUE, item.place, message, 'for example, in [service.ports]: 8443 = "tls"')
    if not route.match.sni and not any(protocol.can_be_read for protocol in spoken):
        message = "a route needs a port that speaks http, http2, grpc or auto, and the unit has none"
        read.findings.add(Code.BAD_VALUE, item.place, message, 'for example, in [service.ports]: 8080 = "http"')


class _Reading:
    """Reads one route. What does not fit goes to the findings."""

    def __init__(self, read: Reader, item: Node) -> None:
        self.read, self.item = read, item
        self.table = read.table(item, schema.ROUTE)

    def route(self, service: Traffic) -> Route:
        before = len(self.read.findings.diagnostics)
        timeout = self.read.duration_ms(self.table.get("timeout"), 0)
        retries = retries_of(self.read, self.table.get("retries"), timeout or service.timeout_ms)
        hedge = hedge_of(self.read, self.table.get("hedge"), timeout or service.timeout_ms)
        rule = self.item.place.rule
        said = Route(
            name=self.read.string(self.table.get("name"), rule),
            rule=rule,
            match=self._match(),
            to=self._to(),
            sticky=self.read.string(self.table.get("sticky"), ""),
            mirror=self._mirror(),
            redirect=self._redirect(),
            rewrite=self._rewrite(),
            respond=self._respond(),
            fault=self._fault(),
            request_headers=self._edits("request_headers"),
            response_headers=self._edits("response_headers"),
            timeout_ms=timeout,
            retries=as_sent(retries),
            hedge=hedge_as_sent(hedge),
        )
        if len(self.read.findings.diagnostics) == before:  # one mistake is told once
            for wrong in route_law.wrong(said):
                self.read.findings.add(Code.BAD_VALUE, self._place(wrong.keys), wrong.message, wrong.hint)
        return said

    def _place(self, keys: Sequence[str]) -> Place:
        """Where the last of these keys stands that does."""
        node, place = self.item, self.item.place
        for key in keys:
            entries = {name.lower(): entry for name, entry in node.table.items()}
            if key.lower() not in entries:
                return place
            node = entries[key.lower()]
            place = node.place
        return place

    def _match(self) -> RouteMatch:
        table = self.read.table(self.table.get("match"), schema.ROUTE_MATCH)
        return RouteMatch(
            path=self.read.string(table.get("path"), ""),
            methods=[text for _, text in self.read.strings(table.get("methods"))],
            headers=[(name.lower(), value) for name, value in self._pairs(table.get("headers"))],
            query=self._pairs(table.get("query")),
            sni=self.read.string(table.get("sni"), "").lower(),
        )

    def _to(self) -> list[Share]:
        node = self.table.get("to")
        if node is None:
            return []
        if isinstance(node.data, str):
            return [Share(node.data, 1)]
        if not isinstance(node.data, dict):
            said = f"expected a service or a table of weights, found {node.kind}"
            self.read.findings.add(Code.WRONG_TYPE, node.place, said, "to = { inventory-v2 = 10, inventory = 90 }")
            return []
        if not node.table:
            self.read.bad(node, "an empty table leads nowhere", "leave the key out for the service itself")
        most = route_law.MOST_WEIGHT
        return [Share(name, self.read.integer(entry, 1, 0, most)) for name, entry in sorted(node.table.items())]

    def _mirror(self) -> Mirror | None:
        node = self.table.get("mirror")
        if node is None:
            return None
        table = self.read.table(node, schema.ROUTE_MIRROR)
        self._must(node, table, schema.ROUTE_MIRROR, "to")
        return Mirror(
            to=self.read.string(table.get("to"), ""),
            percent=self._percent(table.get("percent")),
            max_pending=self.read.integer(table.get("max_pending"), 64, 1, route_law.MOST_PENDING),
        )

    def _redirect(self) -> Redirect | None:
        node = self.table.get("redirect")
        if node is None:
            return None
        table = self.read.table(node, schema.ROUTE_REDIRECT)
        self._must(node, table, schema.ROUTE_REDIRECT, "to")
        return Redirect(self.read.string(table.get("to"), ""), self.read.integer(table.get("status"), 302, 300, 399))

    def _rewrite(self) -> Rewrite | None:
        node = self.table.get("rewrite")
        if node is None:
            return None
        table = self.read.table(node, schema.ROUTE_REWRITE)
        if not table:
            self.read.bad(node, "an empty table rewrites nothing", "path, host, or both")
        return Rewrite(self.read.string(table.get("path"), ""), self.read.string(table.get("host"), ""))

    def _respond(self) -> Respond | None:
        node = self.table.get("respond")
        if node is None:
            return None
        table = self.read.table(node, schema.ROUTE_RESPOND)
        return Respond(
            status=self.read.integer(table.get("status"), 200, 100, 999),
            body=self.read.string(table.get("body"), ""),
            headers=self._pairs(table.get("headers")),
        )

    def _fault(self) -> Inject | None:
        node = self.table.get("fault")
        if node is None:
            return None
        table = self.read.table(node, schema.ROUTE_FAULT)
        if "delay" not in table and "abort" not in table:
            self.read.bad(
                node, "neither a delay nor a status to abort with", 'fault = { delay = "2s", delay_percent = 10 }'
            )
        for word in ("delay", "abort"):
            if f"{word}_percent" in table and word not in table:
                place = table[f"{word}_percent"].key_place
                self.read.findings.add(
                    Code.MISSING, place, f"{word}_percent without {word!r}", f"{word} is what is done"
                )
        return Inject(
            delay_ms=self.read.duration_ms(table.get("delay"), 0),
            delay_percent=self._percent(table.get("delay_percent")) if "delay" in table else 0,
            abort=self.read.integer(table.get("abort"), 0, 100, 999),
            abort_percent=self._percent(table.get("abort_percent")) if "abort" in table else 0,
        )

    def _edits(self, key: str) -> HeaderEdits | None:
        node = self.table.get(key)
        if node is None:
            return None
        table = self.read.table(node, schema.ROUTE_HEADERS)
        remove = [text.lower() for _, text in self.read.strings(table.get("remove"))]
        return HeaderEdits(self._fields(table.get("set")), self._fields(table.get("add")), remove)

    def _fields(self, node: Node | None) -> list[Field]:
        return [(name.lower(), value) for name, value in self._pairs(node)]

    def _pairs(self, node: Node | None) -> list[Field]:
        if node is None or self.read.typed(node, dict) is None:
            return []
        return [(name, self.read.string(entry, "")) for name, entry in sorted(node.table.items())]

    def _percent(self, node: Node | None) -> float:
        if node is None:
            return 100.0
        if type(node.data) is int and isinstance(node.data, int) and abs(node.data) < 2**53:
            return float(node.data)
        value = self.read.typed(node, float)
        return 100.0 if value is None else value

    def _must(self, node: Node, table: Mapping[str, Node], kind: Table, key: str) -> None:
        if key not in table:
            example = next(known.example for known in kind.keys if known.name == key)
            self.read.findings.add(Code.MISSING, node.place, f"[{kind.name}] lacks {key!r}", f"for example: {example}")
