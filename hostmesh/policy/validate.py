"""Turns policy files into policies, or tells everything that is wrong with all of them at once.

The same function serves the agent, `hostmesh check` and the tests: there is no second reader that could drift.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hostmesh.errors import Place
from hostmesh.names import BadName, UnitName, check_service_name, service_name_of
from hostmesh.policy import schema
from hostmesh.policy.findings import Code, Findings
from hostmesh.policy.gatekeeper import gatekeeper
from hostmesh.policy.keys import Table
from hostmesh.policy.limits import limit
from hostmesh.policy.model import (
    AccessLog,
    Authorize,
    ClientAddress,
    InboundRule,
    Limit,
    Mode,
    Observe,
    OutboundRule,
    PlaintextRule,
    Policy,
    Port,
    Protocol,
    TokenIssuer,
    Trace,
    Traffic,
)
from hostmesh.policy.read import Reader
from hostmesh.policy.route_law import placeless
from hostmesh.policy.routes import routes
from hostmesh.policy.source import Node, parse
from hostmesh.policy.tokens import issuers, token_match
from hostmesh.policy.traffic import traffic
from hostmesh.policy.words import caller, destination, header, method, path, plaintext_source

Tables = dict[str, Node]


def load(files: Mapping[str, str]) -> tuple[Policy, ...]:
    """Read the policies of one host.

    ``files``: name to text. Names end in ``UNIT.toml``; as they are given here they stand in errors and rule names.
    Raises PolicyError with all findings of all files. The result is ordered by unit.
    """
    findings = Findings()
    policies = []
    for name, text in sorted(files.items()):
        unit = _unit_of(name, findings)
        tree = parse(name, text, findings)
        if unit is not None and tree is not None:
            policies.append(_Reading(unit, Place(name), findings).policy(tree))
    _check_together(policies, findings)
    findings.finish()
    return tuple(sorted(policies, key=lambda policy: policy.unit))


def _unit_of(name: str, findings: Findings) -> UnitName | None:
    """The unit that a file is about: its name says so, and nothing else does."""
    base = name.rpartition("/")[2]
    stem = base.removesuffix(".toml")
    hint = "a policy is called UNIT.toml, for example inventory.service.toml"
    if stem == base:
        findings.add(Code.FILE_NAME, Place(name), "not the name of a policy: it does not end in .toml", hint)
        return None
    try:
        unit = UnitName(stem)
    except BadName:
        hint = f"did you mean {stem}.service.toml?" if stem and "." not in stem else hint
        findings.add(Code.FILE_NAME, Place(name), f"{stem!r} is not a unit's name", hint)
        return None
    if unit.full.endswith(".socket"):
        hint = f"name its service: {unit.stem}.service.toml"
        findings.add(Code.FILE_NAME, Place(name), "a socket unit has no policy", hint)
        return None
    if unit.stem.endswith("@"):
        hint = f"name an instance: {unit.stem}NAME.service.toml"
        findings.add(Code.FILE_NAME, Place(name), "a template is no unit", hint)
        return None
    return unit


class _Reading:
    """Reads one file. What does not fit goes to the findings, and a default takes its place."""

    def __init__(self, unit: UnitName, file: Place, findings: Findings) -> None:
        self.unit = unit
        self.file = file
        self.findings = findings
        self.read = Reader(findings)
        self.ports_are_sound = True

    def policy(self, tree: Node) -> Policy:
        top = self.read.table(tree, schema.ROOT)
        before = len(self.findings.diagnostics)
        service, ports = self._service(top.get("service"))
        self.ports_are_sound = len(self.findings.diagnostics) == before
        inbound = self.read.table(top.get("inbound"), schema.INBOUND)
        declared = {port.number: port.protocol for port in ports}
        believed = issuers(self.read, inbound.get("jwt"))
        self._check_claims(believed, declared)
        outbound = self._outbound(top.get("outbound"))
        asked = gatekeeper(self.read, inbound.get("authorize"), service, outbound)
        self._check_asked(asked, declared)
        return Policy(
            place=self.file,
            unit=self.unit,
            service=service,
            ports=ports,
            mode=Mode(self.read.choice(inbound.get("mode"), Mode.ENFORCE, Mode)),
            inbound_place=top["inbound"].place if "inbound" in top else self.file,
            allow=self._inbound_rules(inbound.get("allow"), schema.ALLOW, declared, believed),
            deny=self._inbound_rules(inbound.get("deny"), schema.DENY, declared, believed),
            plaintext=self._plaintext_rules(inbound.get("plaintext"), declared),
            traffic=self._traffic(top.get("traffic"), declared),
            outbound=outbound,
            observe=self._observe(top.get("observe")),
            jwt=believed,
            limits=self._limits(inbound.get("limit"), declared),
            authorize=asked,
        )

    def _service(self, node: Node | None) -> tuple[str, tuple[Port, ...]]:
        table = self.read.table(node, schema.SERVICE)
        name = ""
        if "name" in table:
            name = self._word(table["name"], check_service_name, self.read.string(table["name"], "service")) or ""
        else:
            try:
                name = service_name_of(self.unit)
            except BadName as error:
                self.findings.add(Code.MISSING, node.place if node else self.file, error.message, error.hint)
        return name, self._ports(table.get("ports"))

    def _ports(self, node: Node | None) -> tuple[Port, ...]:
        if node is None or self.read.typed(node, dict) is None:
            return ()
        ports = [self._port(key, entry) for key, entry in node.table.items()]
        return tuple(sorted((port for port in ports if port), key=lambda port: port.number))

    def _port(self, key: str, node: Node) -> Port | None:
        number = int(key) if key.isascii() and key.isdigit() and len(key) <= 5 else 0
        if not 1 <= number <= 65535 or str(number) != key:
            hint = 'for example: 8080 = "http"'
            self.findings.add(Code.BAD_VALUE, node.key_place, f"{key!r} is not a port: 1..65535", hint)
            return None
        if isinstance(node.data, dict):
            table = self.read.table(node, schema.PORTS)
            protocol, client = table.get("protocol"), table.get("client_address")
        elif isinstance(node.data, str):
            protocol, client = node, None
        else:
            expected = f"expected a protocol or a table, found {node.kind}"
            self.findings.add(Code.WRONG_TYPE, node.place, expected, f'for example: {key} = "http"')
            return None
        return Port(
            node.key_place,
            number,
            Protocol(self.read.choice(protocol, Protocol.TCP, Protocol)),
            ClientAddress(self.read.choice(client, ClientAddress.AUTO, ClientAddress)),
        )

    def _word(self, node: Node, check: Callable[[str], str], text: str) -> str | None:
        """One word through the function that knows its kind; None, and a finding, if it is none."""
        try:
            return check(text)
        except BadName as error:
            self.findings.add(Code.BAD_VALUE, node.place, error.message, error.hint)
            return None

    def _words(self, node: Node | None, check: Callable[[str], str]) -> tuple[str, ...]:
        words = [self._word(item, check, text) for item, text in self.read.strings(node)]
        if node is not None and isinstance(node.data, list) and not node.items:
            self.read.bad(node, "an empty list fits nothing", "leave the key out if anything shall fit")
        return tuple(word for word in words if word is not None)

    def _must(self, rule: Node, table: Tables, schema_of: Table, *keys: str) -> None:
        for key in keys:
            if key not in table:
                example = next(k.example for k in schema_of.keys if k.name == key)
                message = f"[[{schema_of.name}]] lacks {key!r}"
                self.findings.add(Code.MISSING, rule.place, message, f"for example: {example}")

    def _rule_ports(self, node: Node | None, declared: Mapping[int, Protocol]) -> tuple[int, ...]:
        if node is None or self.read.typed(node, list) is None:
            return ()
        numbers = [(item, self.read.integer(item, 0, 1, 65535)) for item in node.items]
        if not node.items:
            self.read.bad(node, "an empty list fits nothing", "leave the key out if every port is meant")
        for item, number in numbers:
            if number and number not in declared and self.ports_are_sound:
                known = ", ".join(map(str, sorted(declared))) or "none"
                self.read.bad(item, f"port {number} is not declared", f"ports in [service.ports]: {known}")
        return tuple(number for _, number in numbers if number)

    def _check_claims(self, believed: Sequence[TokenIssuer], declared: Mapping[int, Protocol]) -> None:
        """Who is let in to say anything may say headers too: an application that believes them needs a port of HTTP."""
        told = next((issuer for issuer in believed if issuer.headers), None)
        if told is not None:
            self._refuse_auto(told.place, declared, "headers of claims", "could forge them")

    def _check_asked(self, asked: Authorize | None, declared: Mapping[int, Protocol]) -> None:
        """Nobody gets round a gatekeeper by speaking something else than HTTP."""
        if asked is None or not self.ports_are_sound:
            return
        self._refuse_auto(asked.place, declared, "a gatekeeper", "would not be asked about")
        if not any(protocol.can_be_read for protocol in declared.values()):
            message = "a gatekeeper is asked about requests, and the unit's ports carry no requests"
            self.findings.add(Code.BAD_VALUE, asked.place, message, 'for example, in [service.ports]: 8080 = "http"')

    def _refuse_auto(self, place: Place, declared: Mapping[int, Protocol], what: str, would: str) -> None:
        auto = next((number for number, protocol in declared.items() if protocol is Protocol.AUTO), None)
        if auto is not None:
            message = f"{what} beside port {auto}, which is auto: whoever speaks no HTTP there {would}"
            self.findings.add(Code.BAD_VALUE, place, message, f'say what is spoken: {auto} = "http"')

    def _check_readable(self, table: Tables, ports: tuple[int, ...], declared: Mapping[int, Protocol]) -> None:
        """A condition on the request needs a port on which requests can be read."""
        asks = next((table[key] for key in ("methods", "paths", "headers", "jwt") if key in table), None)
        if asks is None or not self.ports_are_sound:
            return  # one mistake in [service.ports] is told once
        opaque = [port for port in ports if not declared.get(port, Protocol.HTTP).can_be_read]
        if opaque:
            said = f"port {opaque[0]} speaks {declared[opaque[0]]}, which is carried unread"
            message = f"{said}: methods, paths, headers and jwt need http, http2, grpc or auto"
            self.findings.add(Code.BAD_VALUE, asks.key_place, message)
        elif not ports and not any(protocol.can_be_read for protocol in declared.values()):
            message = "methods, paths, headers and jwt need a port that speaks http, and the unit has none"
            self.findings.add(Code.BAD_VALUE, asks.key_place, message, 'for example, in [service.ports]: 8080 = "http"')

    def _inbound_rules(
        self,
        node: Node | None,
        kind: Table,
        declared: Mapping[int, Protocol],
        believed: Sequence[TokenIssuer],
    ) -> tuple[InboundRule, ...]:
        rules = []
        for item in self.read.tables(node, kind.name):
            table = self.read.table(item, kind)
            self._must(item, table, kind, "from")
            rules.append(self._inbound_rule(item, table, declared, believed))
        return tuple(rules)

    def _inbound_rule(
        self, item: Node, table: Tables, declared: Mapping[int, Protocol], believed: Sequence[TokenIssuer]
    ) -> InboundRule:
        ports = self._rule_ports(table.get("ports"), declared)
        self._check_readable(table, ports, declared)
        return InboundRule(
            item.place,
            self._words(table.get("from"), caller),
            ports,
            self._words(table.get("methods"), method),
            self._words(table.get("paths"), path),
            self._headers(table.get("headers")),
            token_match(self.read, table.get("jwt"), believed),
            self.read.boolean(table.get("audit"), False),
        )

    def _limits(self, node: Node | None, declared: Mapping[int, Protocol]) -> tuple[Limit, ...]:
        items = [(item, self.read.table(item, schema.LIMIT)) for item in self.read.tables(node, schema.LIMIT.name)]
        return tuple(limit(self.read, self._inbound_rule(item, table, declared, ()), table) for item, table in items)

    def _headers(self, node: Node | None) -> tuple[tuple[str, str], ...]:
        if node is None or self.read.typed(node, dict) is None:
            return ()
        if not node.table:
            self.read.bad(node, "an empty table asks for nothing", "leave the key out")
        read: dict[str, str] = {}
        for name, entry in node.table.items():
            try:
                lower, value = header(name, self.read.string(entry, "x"))
            except BadName as error:
                self.findings.add(Code.BAD_VALUE, entry.key_place, error.message, error.hint)
                continue
            if lower in read:
                message = f"header {lower!r} stands here twice"
                self.findings.add(Code.DUPLICATE, entry.key_place, message, "case does not count")
            read[lower] = value
        return tuple(sorted(read.items()))

    def _plaintext_rules(self, node: Node | None, declared: Mapping[int, Protocol]) -> tuple[PlaintextRule, ...]:
        kind = schema.PLAINTEXT
        rules = []
        for item in self.read.tables(node, kind.name):
            table = self.read.table(item, kind)
            self._must(item, table, kind, "from", "ports")
            ports = self._rule_ports(table.get("ports"), declared)
            self._check_readable(table, ports, declared)
            rules.append(
                PlaintextRule(
                    item.place,
                    self._words(table.get("from"), plaintext_source),
                    ports,
                    self._words(table.get("methods"), method),
                    self._words(table.get("paths"), path),
                )
            )
        return tuple(rules)

    def _traffic(self, node: Node | None, declared: Mapping[int, Protocol]) -> Traffic:
        said = traffic(self.read, node)
        protocols = tuple(declared.values()) if self.ports_are_sound else (Protocol.AUTO,)
        return replace(said, routes=routes(self.read, node and node.table.get("route"), said, protocols))

    def _outbound(self, node: Node | None) -> tuple[OutboundRule, ...] | None:
        if node is None:
            return None
        table = self.read.table(node, schema.OUTBOUND)
        if "allow" not in table:
            hint = "allow = [] refuses everything; without [outbound] everything may be called"
            self.findings.add(Code.MISSING, node.place, "[outbound] lacks 'allow'", hint)
        rules = []
        for item, text in self.read.strings(table.get("allow")):
            try:
                rules.append(destination(item.place, text))
            except BadName as error:
                self.findings.add(Code.BAD_VALUE, item.place, error.message, error.hint)
        return tuple(rules)

    def _observe(self, node: Node | None) -> Observe:
        table = self.read.table(node, schema.OBSERVE)
        default = Observe()
        return Observe(
            AccessLog(self.read.choice(table.get("access_log"), default.access_log, AccessLog)),
            self._trace(table.get("trace"), default.trace),
        )

    def _trace(self, node: Node | None, default: Trace) -> Trace:
        """A share alone, or a table."""
        if node is None or not isinstance(node.data, dict):
            return Trace(self.read.ratio(node, default.share))
        table = self.read.table(node, schema.TRACE)
        return Trace(
            self.read.ratio(table.get("share"), default.share), self.read.boolean(table.get("errors"), default.errors)
        )


def _check_together(policies: list[Policy], findings: Findings) -> None:
    """What the policies of one host cannot say at once: a unit twice, a port twice, one service with two behaviours."""
    units: dict[UnitName, Policy] = {}
    ports: dict[int, Place] = {}
    services: dict[str, Policy] = {}
    for policy in policies:
        if policy.unit in units:
            message = f"{policy.unit} has a policy already: {units[policy.unit].place}"
            findings.add(Code.DUPLICATE, policy.place, message, "one file a unit")
            continue
        units[policy.unit] = policy
        for port in policy.ports:
            if port.number in ports:
                message = f"port {port.number} is declared already: {ports[port.number]}"
                findings.add(Code.DUPLICATE, port.place, message, "two units of one host cannot serve one port")
            ports.setdefault(port.number, port.place)
        other = services.setdefault(policy.service, policy)
        if _behaviour(other.traffic) != _behaviour(policy.traffic):
            message = f"service {policy.service!r} has another [traffic] already: {other.traffic.place or other.place}"
            hint = "say the same in both, or name another service"
            findings.add(Code.DUPLICATE, policy.traffic.place or policy.place, message, hint)


def _behaviour(said: Traffic) -> Traffic:
    """All of it but the places."""
    retries = said.retries and replace(said.retries, place=Place(""))
    breaker = said.breaker and replace(said.breaker, place=Place(""))
    routes = tuple(map(placeless, said.routes))
    return replace(said, retries=retries, breaker=breaker, place=None, routes=routes, lines=())
