"""Turns `[traces]` of the host's settings into values and back: where spans go, and how traces are told."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from hostmesh.names import BadName
from hostmesh.policy import words
from hostmesh.policy.keys import Key, Table
from hostmesh.policy.read import Reader
from hostmesh.policy.settings import Traces
from hostmesh.policy.source import Node

FORMATS = ("w3c", "b3", "b3multi")
PROTOCOLS = ("grpc", "http")
MOST_SPANS = 65_536
_PORTS = {"grpc": 4317, "http": 4318}
_HTTP_PATH = "/v1/traces"
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_PATH = re.compile(r"/[\x21-\x7e]*\Z")
_EXAMPLE = 'for example: "http://127.0.0.1:4317"'
_SCHEMA = Table(
    "traces",
    "",
    tuple(Key(word, "", "", "", "") for word in ("endpoint", "protocol", "propagate", "headers", "ca", "queue")),
)


@dataclass(frozen=True, slots=True)
class Collector:
    """An endpoint, taken apart. ``host``: a name or an address; ``path`` is HTTP's, gRPC has its own."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def is_address(self) -> bool:
        """Whether nothing is to be looked up."""
        return _is_address(self.host)


def collector_of(traces: Traces) -> Collector | None:
    """Where spans go; None: nowhere. Raises BadName, whose text is the finding."""
    if not traces.endpoint:
        return None
    try:
        parts, port = urlsplit(traces.endpoint), urlsplit(traces.endpoint).port
    except ValueError as error:
        raise BadName(f"{traces.endpoint!r} is no URL: {error}", _EXAMPLE) from error
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not (_HOST.match(host) or _is_address(host)):
        raise BadName(f"{traces.endpoint!r} is no URL of http or https", _EXAMPLE)
    if "@" in parts.netloc or parts.query or parts.fragment or port == 0:
        raise BadName(f"{traces.endpoint!r} has more than host, port and path", "tokens belong in headers")
    return Collector(parts.scheme == "https", host, port or _PORTS[traces.protocol], _path(traces, parts))


def _path(traces: Traces, parts: SplitResult) -> str:
    bare = parts.path in ("", "/")
    if traces.protocol == "grpc":
        if not bare:
            raise BadName(f"{traces.endpoint!r} has a path, and gRPC has its own", 'protocol = "http" takes one')
        return "/"
    if not bare and not _PATH.match(parts.path):
        raise BadName(f"{parts.path!r} is no path", f"for example: {_HTTP_PATH}")
    return _HTTP_PATH if bare else parts.path


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def read_traces(read: Reader, node: Node | None) -> Traces:
    """The table ``[traces]``; what is left out has its default."""
    table = read.table(node, _SCHEMA)
    default = Traces()
    formats = [read.choice(item, "w3c", FORMATS) for item, _ in read.strings(table.get("propagate"))]
    traces = Traces(
        endpoint=read.string(table.get("endpoint"), default.endpoint),
        protocol=read.choice(table.get("protocol"), default.protocol, PROTOCOLS),
        propagate=tuple(dict.fromkeys(formats)) if "propagate" in table else default.propagate,
        headers=_headers(read, table.get("headers")),
        ca=read.string(table.get("ca"), default.ca),
        queue=read.integer(table.get("queue"), default.queue, 1, MOST_SPANS),
    )
    if traces.ca and not traces.ca.startswith("/"):
        read.bad(table["ca"], f"{traces.ca!r} is not an absolute path")
    try:
        collector_of(traces)
    except BadName as error:
        read.bad(table["endpoint"], error.message, error.hint)
    return traces


def _headers(read: Reader, node: Node | None) -> tuple[tuple[str, str], ...]:
    if node is None or read.typed(node, dict) is None:
        return ()
    headers = []
    for key, entry in node.table.items():
        try:
            headers.append(words.header(key, read.string(entry, "x")))
        except BadName as error:
            read.bad(entry, error.message, error.hint)
    return tuple(sorted(headers))
