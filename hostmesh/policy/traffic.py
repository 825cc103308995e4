"""Reads `[traffic]`: how callers shall treat a service."""

from hostmesh.policy import schema
from hostmesh.policy.findings import Code
from hostmesh.policy.model import Retries, Traffic
from hostmesh.policy.read import Reader
from hostmesh.policy.source import Node

_RETRY_ON = ("5xx", "gateway-error", "connect-failure", "reset")


def traffic(read: Reader, node: Node | None) -> Traffic:
    """The table; without it callers wait without limit and try once."""
    table = read.table(node, schema.TRAFFIC)
    timeout = read.duration_ms(table.get("timeout"), 0)
    retries = retries_of(read, table.get("retries"), timeout)
    later = ("round-robin", "ewma", "consistent-hash")
    balance = read.choice(table.get("balance"), "least-request", ["least-request"], later)
    return Traffic(timeout, retries, balance, node.place if node else None)


def retries_of(read: Reader, node: Node | None, timeout_ms: int) -> Retries | None:
    """A table of retries, wherever it stands; ``timeout_ms``: of all tries together, 0 for none."""
    if node is None:
        return None
    table = read.table(node, schema.RETRIES)
    default = Retries(node.place)
    on = tuple(read.choice(item, "", _RETRY_ON) for item, _ in read.strings(table.get("on")))
    per_try_timeout = read.duration_ms(table.get("per_try_timeout"), default.per_try_timeout_ms)
    if timeout_ms and per_try_timeout > timeout_ms:
        place, message = table["per_try_timeout"].place, "per_try_timeout is longer than timeout"
        read.findings.add(Code.BAD_VALUE, place, message, "it would never be reached")
    return Retries(
        node.place,
        read.integer(table.get("attempts"), default.attempts, 1, 10),
        per_try_timeout,
        on if "on" in table else default.on,
        read.ratio(table.get("budget"), default.budget),
        read.boolean(table.get("non_idempotent"), default.non_idempotent),
    )
