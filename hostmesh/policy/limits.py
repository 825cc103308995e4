"""Reads an `[[inbound.limit]]`, and says again what one allows."""

import re

from hostmesh.policy import schema
from hostmesh.policy.findings import Code
from hostmesh.policy.model import InboundRule, Limit
from hostmesh.policy.read import Reader
from hostmesh.policy.source import Node
from hostmesh.wire import snapshot as wire

PER = ("caller", "all")
MOST = 1_000_000
_RATE = re.compile(r"([0-9]{1,7})/([smh])\Z")
_WINDOWS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000}


def limit(read: Reader, rule: InboundRule, table: dict[str, Node]) -> Limit:
    """The limit of what ``rule`` says; ``table``: its entries."""
    if not {"rate", "concurrent"} & table.keys():
        message = f"[[{schema.LIMIT.name}]] has neither 'rate' nor 'concurrent'"
        read.findings.add(Code.MISSING, rule.place, message, 'for example: rate = "100/s", or concurrent = 50')
    if "burst" in table and "rate" not in table:
        read.bad(table["burst"], "'burst' is of a rate, and there is none", 'for example: rate = "100/s"')
    requests, window_ms = _rate(read, table.get("rate"))
    a_second = max(1, requests * 1000 // window_ms) if window_ms else 0
    return Limit(
        rule,
        requests,
        window_ms,
        read.integer(table.get("burst"), a_second, 1, MOST),
        read.integer(table.get("concurrent"), 0, 1, MOST),
        read.choice(table.get("per"), "caller", PER),
    )


def _rate(read: Reader, node: Node | None) -> tuple[int, int]:
    """How many in how many milliseconds; none where nothing is said."""
    text = read.string(node, "")
    if node is None or not text:
        return 0, 0
    match = _RATE.match(text)
    requests = int(match[1]) if match else 0
    if not match or not 1 <= requests <= MOST:
        read.bad(node, f"{text!r} is not a rate of 1..{MOST}", 'for example "100/s", "30/m" or "5/h"')
        return 0, 0
    return requests, _WINDOWS_MS[match[2]]


def limit_text(limit: wire.Limit) -> str:
    """As a person reads it."""
    units = {window: unit for unit, window in _WINDOWS_MS.items()}
    rate = [f"{limit.requests}/{units[limit.window_ms]}, {limit.burst} at once"] if limit.requests else []
    under_way = [f"{limit.concurrent} under way"] if limit.concurrent else []
    return ", ".join(["at most " + " and ".join([*rate, *under_way]), f"per {limit.per}"])
