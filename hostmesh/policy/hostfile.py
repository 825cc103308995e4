"""Turns `/etc/hostmesh/hostmesh.toml` into settings and settings into its text. Errors are told as for policies."""

import ipaddress
import re
from dataclasses import fields

from hostmesh.errors import Place
from hostmesh.names import BadName, check_trust_domain, check_zone_name
from hostmesh.policy.findings import Code, Findings
from hostmesh.policy.keys import Key, Table
from hostmesh.policy.read import Reader
from hostmesh.policy.settings import Marks, Metrics, Overload, Paths, Ports, Settings, Timeouts
from hostmesh.policy.source import Node, parse
from hostmesh.policy.traces import read_traces

PLACE = "/etc/hostmesh/hostmesh.toml"

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_MAX_TABLE = 0x7FFF_FFFF
_MAX_GROUP = 0xFFFF
_MAX_SERIES = 1_000_000
_MAX_REQUESTS = 1_000_000


def _schema(name: str, *words: str) -> Table:
    return Table(name, "", tuple(Key(word, "", "", "", "") for word in words))


def load_settings(file: str, text: str) -> Settings:
    """Read the host's settings; what is left out has its default. Raises PolicyError with all findings."""
    findings = Findings()
    tree = parse(file, text, findings)
    settings = _Reading(findings).settings(tree) if tree is not None else Settings()
    findings.finish()
    return settings


class _Reading:
    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.read = Reader(findings)

    def settings(self, tree: Node) -> Settings:
        top = self.read.table(tree, _schema("", *(field.name for field in fields(Settings))))
        default = Settings()
        marks = self._marks(top.get("marks"))
        return Settings(
            trust_domain=self._trust_domain(top.get("trust_domain"), default.trust_domain),
            host=self._host(top.get("host"), default.host),
            zone=self._zone(top.get("zone"), default.zone),
            controllers=tuple(self._controller(node, text) for node, text in self.read.strings(top.get("controllers"))),
            metrics_address=self._address(top.get("metrics_address"), default.metrics_address),
            route_table=self.read.integer(top.get("route_table"), default.route_table, 256, _MAX_TABLE),
            nflog_group=self.read.integer(top.get("nflog_group"), default.nflog_group, 1, _MAX_GROUP),
            marks=marks,
            ports=self._ports(top.get("ports")),
            timeouts=self._timeouts(top.get("timeouts")),
            paths=self._paths(top.get("paths")),
            traces=read_traces(self.read, top.get("traces")),
            metrics=self._metrics(top.get("metrics")),
            overload=self._overload(top.get("overload")),
        )

    def _trust_domain(self, node: Node | None, default: str) -> str:
        text = self.read.string(node, default)
        try:
            return check_trust_domain(text)
        except BadName as error:
            self.findings.add(Code.BAD_VALUE, node.place if node else Place(""), error.message, error.hint)
            return default

    def _host(self, node: Node | None, default: str) -> str:
        text = self.read.string(node, default)
        if node is not None and text and not _HOST.match(text):
            self.read.bad(node, f"{text!r} is not a host name", "for example: h1 or h1.example.org, in lower case")
        return text

    def _zone(self, node: Node | None, default: str) -> str:
        text = self.read.string(node, default)
        try:
            return check_zone_name(text) if node is not None else text
        except BadName as error:
            self.findings.add(Code.BAD_VALUE, node.place if node else Place(""), error.message, error.hint)
            return default

    def _controller(self, node: Node, text: str) -> str:
        name, _, port = text.rpartition(":")
        bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
            self.read.bad(node, f"{text!r} has no port", 'for example: "controller.example.org:15010"')
        elif not _HOST.match(bare) and not _is_address(bare):
            self.read.bad(node, f"{name!r} is no host name or address", 'for example: "controller.example.org:15010"')
        return text

    def _address(self, node: Node | None, default: str) -> str:
        text = self.read.string(node, default)
        if node is not None and not _is_address(text):
            self.read.bad(node, f"{text!r} is not an address", 'for example: "127.0.0.1"')
        return text

    def _section(
        self, node: Node | None, section: type[Marks | Ports | Timeouts | Paths | Metrics | Overload]
    ) -> dict[str, Node]:
        return self.read.table(node, _schema(section.__name__.lower(), *(field.name for field in fields(section))))

    def _ports(self, node: Node | None) -> Ports:
        table = self._section(node, Ports)
        values: dict[str, int] = {}
        default = Ports()
        taken: dict[int, str] = {}
        for field in fields(Ports):
            name = field.name
            values[name] = self.read.integer(table.get(name), getattr(default, name), 1, 65535)
            other = taken.setdefault(values[name], name)
            if other != name and "dns" not in (name, other):
                entry = table.get(name) or table[other]
                self.findings.add(Code.DUPLICATE, entry.place, f"port {values[name]} is for {other!r} already")
        return Ports(**values)

    def _marks(self, node: Node | None) -> Marks:
        table = self._section(node, Marks)
        values: dict[str, int] = {}
        default = Marks()
        used = 0
        for field in fields(Marks):
            name = field.name
            value = self.read.integer(table.get(name), getattr(default, name), 1, 0xFFFF_FFFF)
            entry = table.get(name) or node
            if entry is not None and name == "unit" and value & (value + 1):
                self.read.bad(entry, f"{value:#x} is not a mask of low bits", "for example: 0xfff")
            elif entry is not None and name != "unit" and value.bit_count() != 1:
                self.read.bad(entry, f"{value:#x} is not one bit", f"for example: {getattr(default, name):#x}")
            elif entry is not None and used & value:
                self.read.bad(entry, f"{value:#x} has a bit that another mark has", "every mark has bits of its own")
            used |= value
            values[name] = value
        return Marks(**values)

    def _timeouts(self, node: Node | None) -> Timeouts:
        table = self._section(node, Timeouts)
        default = Timeouts()
        names = (field.name for field in fields(Timeouts))
        return Timeouts(**{name: self.read.duration_ms(table.get(name), getattr(default, name)) for name in names})

    def _overload(self, node: Node | None) -> Overload:
        table, default = self._section(node, Overload), Overload()
        return Overload(
            delay=self.read.duration_ms(table.get("delay"), default.delay),
            requests=self.read.integer(table.get("requests"), default.requests, 1, _MAX_REQUESTS),
        )

    def _metrics(self, node: Node | None) -> Metrics:
        table, default = self._section(node, Metrics), Metrics()
        return Metrics(
            max_series=self.read.integer(table.get("max_series"), default.max_series, 1, _MAX_SERIES),
            expire=self.read.duration_ms(table.get("expire"), default.expire),
        )

    def _paths(self, node: Node | None) -> Paths:
        table = self._section(node, Paths)
        values: dict[str, str] = {}
        default = Paths()
        for field in fields(Paths):
            entry = table.get(field.name)
            values[field.name] = self.read.string(entry, getattr(default, field.name))
            if entry is not None and not values[field.name].startswith("/"):
                self.read.bad(entry, f"{values[field.name]!r} is not an absolute path")
        return Paths(**values)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def render(settings: Settings) -> str:
    """The file that says what differs from the defaults; `load_settings` reads it back to equal settings."""
    default = Settings()
    top = [f"trust_domain = {quoted(settings.trust_domain)}"]
    top += [f"controllers = [{', '.join(map(quoted, settings.controllers))}]"] if settings.controllers else []
    for name in ("host", "zone", "metrics_address", "route_table", "nflog_group"):
        value = getattr(settings, name)
        top += (
            [f"{name} = {quoted(value) if isinstance(value, str) else value}"]
            if value != getattr(default, name)
            else []
        )
    text = "\n".join(top) + "\n"
    sections = (
        ("ports", str), ("marks", hex), ("timeouts", _duration), ("paths", quoted), ("traces", _value),
        ("metrics", str), ("overload", str),
    )  # fmt: skip
    for section, written in sections:
        mine, usual = getattr(settings, section), getattr(default, section)
        lines = [
            f"{field.name} = {_WRITTEN.get((section, field.name), written)(getattr(mine, field.name))}"
            for field in fields(mine)
            if getattr(mine, field.name) != getattr(usual, field.name)
        ]
        text += f"\n[{section}]\n" + "\n".join(lines) + "\n" if lines else ""
    return text


def _duration(milliseconds: int) -> str:
    return quoted(f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s")


def _value(value: str | int | tuple[object, ...]) -> str:
    """A text, a number, a list of texts, or a table of texts."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    pairs = [item for item in value if isinstance(item, tuple)]
    if pairs:
        return "{ " + ", ".join(f"{quoted(name)} = {quoted(text)}" for name, text in pairs) + " }"
    return f"[{', '.join(quoted(str(item)) for item in value)}]"


def quoted(text: str) -> str:
    """The text as a basic string of TOML."""
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x20 or c in '"\\\x7f' else c for c in text)
    return f'"{escaped}"'


_WRITTEN = {("metrics", "expire"): _duration, ("overload", "delay"): _duration}
