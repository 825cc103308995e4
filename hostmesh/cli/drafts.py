"""Turns what was seen of a unit into policy text: the first draft in audit mode, suggested rules, the end of audit.

Text in, text out: what a person wrote stays as it is, to the last comment.
"""

import ipaddress
import json
from collections.abc import Iterable, Sequence

from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName, service_name_of
from hostmesh.policy.findings import Findings
from hostmesh.policy.source import Node, parse
from hostmesh.wire.agent_control import Suggestion

_HTTP_PORTS = frozenset({80, 8000, 8008, 8080, 8081, 8888})
PLAINTEXT = "plaintext"


def first_draft(unit: UnitName, listens: Iterable[tuple[str, int]]) -> str:
    """A policy in audit mode. listens: (address, port) on which the unit was seen to listen."""
    by_port: dict[int, list[str]] = {}
    for address, port in sorted(set(listens)):
        by_port.setdefault(port, []).append(address)
    ports = "\n".join(_port_line(port, addresses) for port, addresses in sorted(by_port.items()))
    return f"""\
# Policy of {unit.full}, written by `hostmesh enable`.
#
# While mode is "audit", nothing is refused: whoever would be is recorded, and shown by `hostmesh status`.
# `hostmesh enforce {unit.full}` ends that. All that can be said here: /opt/hostmesh/share/hostmesh/docs/policy.md

[service]
name = "{service_name_of(unit)}"

[service.ports]
{ports or '# The unit was not seen to listen on any port. For example: 8080 = "http"'}

[inbound]
mode = "audit"
"""


def _port_line(port: int, addresses: Sequence[str]) -> str:
    guess = "http" if port in _HTTP_PORTS else "tcp"
    doubt = (
        'guessed from the number; "tcp" if it is not HTTP/1.1' if guess == "http" else '"http" if it speaks HTTP/1.1'
    )
    where = "; on loopback only" if all(ipaddress.ip_address(a).is_loopback for a in addresses) else ""
    return f'{port} = "{guess}"  # {doubt}{where}'


def suggested_rules(seen: Sequence[Suggestion], own: Iterable[str] = ()) -> str:
    """Rules that let in exactly the callers seen, one each. own: addresses of this host, whose callers are local."""
    groups: dict[tuple[str, str], list[Suggestion]] = {}
    for one in seen:
        source = _source(one.client, frozenset(own)) if one.peer == PLAINTEXT else ""
        groups.setdefault((one.peer, source), []).append(one)
    return "\n".join(_rule(group, source) for (_, source), group in groups.items())


def _rule(group: Sequence[Suggestion], source: str) -> str:
    first, count = group[0], sum(one.count for one in group)
    ports = ", ".join(map(str, sorted({one.port for one in group})))
    methods = sorted({method for one in group for method in one.methods})
    times = f"seen {count} time{'s' if count != 1 else ''}"
    if source:
        return f'[[inbound.plaintext]]  # {times}\nfrom  = ["{source}"]\nports = [{ports}]\n'
    head = f"[[inbound.allow]]  # {times}, last from {first.client or '?'}\n"
    only = f"# methods = {json.dumps(methods)}\n" if methods else ""
    return f'{head}from  = ["{first.caller}"]\nports = [{ports}]\n{only}'


def _source(client: str, own: frozenset[str]) -> str:
    address = ipaddress.ip_address(client)
    return "local" if address.is_loopback or client in own else str(ipaddress.ip_network(address))


def enforced(file: str, text: str, rules: str = "") -> str:
    """The same text with ``mode = "enforce"``, and rules put at its end. Raises HostmeshError where it is not audit."""
    findings = Findings()
    tree = parse(file, text, findings)
    findings.finish()
    inbound = tree.table.get("inbound") if tree else None
    mode = inbound.table.get("mode") if inbound else None
    if mode is None or mode.data != "audit":
        raise HostmeshError(f"{file} is not in audit mode", "a policy that says nothing of mode is enforced")
    start = _offset(text, mode)
    quote = text[start]
    end = text.index(quote, start + 1) + 1
    if text[start:end].strip(quote) != "audit":
        raise HostmeshError(f"{mode.place}: mode is written in a way that cannot be replaced", 'write mode = "audit"')
    changed = f"{text[:start]}{quote}enforce{quote}{text[end:]}"
    return f"{changed.rstrip(chr(10))}\n\n{rules}" if rules else changed


def _offset(text: str, node: Node) -> int:
    lines = text.split("\n")
    return sum(len(line) + 1 for line in lines[: node.place.line - 1]) + node.place.column - 1
