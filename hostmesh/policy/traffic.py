"""Reads `[traffic]`: how callers shall treat a service."""

from hostmesh.names import BadName
from hostmesh.policy import schema
from hostmesh.policy.findings import Code
from hostmesh.policy.model import Balance, Breaker, Hedge, Retries, Traffic
from hostmesh.policy.read import Reader
from hostmesh.policy.source import Node
from hostmesh.policy.words import hash_on
from hostmesh.wire import snapshot as wire

CONSISTENT_HASH = "consistent-hash"
BALANCES = ("least-request", "round-robin", "ewma", CONSISTENT_HASH)
PREFER = ("any", "near")
MOST_BOUND = 100
MOST_IN_USE = 1_000_000
MOST_ERRORS = 1000
MOST_HEDGES = 5
_GRPC = ("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable")
RETRY_ON = ("5xx", "gateway-error", "connect-failure", "reset", "retriable-4xx", *_GRPC)
_BACKOFF_MS, _MAX_BACKOFF_MS = 25, 250


def traffic(read: Reader, node: Node | None) -> Traffic:
    """The table; without it callers wait without limit and try once."""
    table = read.table(node, schema.TRAFFIC)
    timeout = read.duration_ms(table.get("timeout"), 0)
    retries = retries_of(read, table.get("retries"), timeout)
    default = Traffic()
    return Traffic(
        timeout,
        retries,
        _balance(read, table.get("balance")),
        node.place if node else None,
        read.choice(table.get("prefer"), default.prefer, PREFER),
        read.duration_ms(table.get("slow_start"), default.slow_start_ms),
        read.ratio(table.get("panic"), default.panic),
        _breaker(read, table.get("breaker")),
        read.duration_ms(table.get("connect_timeout"), default.connect_timeout_ms),
        read.duration_ms(table.get("idle_timeout"), default.idle_timeout_ms),
        lines=tuple(sorted((word, entry.key_place.line) for word, entry in table.items() if word != "route")),
        hedge=hedge_of(read, table.get("hedge"), timeout),
    )


def _breaker(read: Reader, node: Node | None) -> Breaker | None:
    if node is None:
        return None
    table = read.table(node, schema.BREAKER)
    default = Breaker(node.place)
    if isinstance(node.data, dict) and not node.table:
        read.bad(node, "an empty breaker limits nothing", "for example: consecutive_errors = 5")
    return Breaker(
        node.place,
        read.integer(table.get("max_connections"), 0, 1, MOST_IN_USE),
        read.integer(table.get("max_pending"), 0, 1, MOST_IN_USE),
        read.integer(table.get("max_requests"), 0, 1, MOST_IN_USE),
        read.integer(table.get("max_retries"), 0, 1, MOST_IN_USE),
        read.integer(table.get("consecutive_errors"), 0, 1, MOST_ERRORS),
        read.duration_ms(table.get("eject"), default.eject_ms),
        read.ratio(table.get("max_ejected"), default.max_ejected),
    )


def _balance(read: Reader, node: Node | None) -> Balance:
    default = Balance()
    if node is None:
        return default
    is_table = isinstance(node.data, dict)
    table = read.table(node, schema.BALANCE) if is_table else {}
    by = read.choice(table.get("by") if is_table else node, default.by, BALANCES)
    on = _hash_on(read, table["on"]) if "on" in table else ""
    if is_table and "by" not in table:
        read.findings.add(Code.MISSING, node.place, "balance lacks 'by'", 'for example: by = "consistent-hash"')
    elif by == CONSISTENT_HASH and "on" not in table:
        hint = 'balance = { by = "consistent-hash", on = "header:x-user" }'
        read.findings.add(Code.MISSING, node.place, f"{by!r} does not say by what", f"for example: {hint}")
    elif by != CONSISTENT_HASH and (more := table.get("on") or table.get("bound")):
        read.findings.add(Code.BAD_VALUE, more.key_place, f"nothing is hashed by {by!r}", f"by = {CONSISTENT_HASH!r}")
    return Balance(by, on, read.number(table.get("bound"), 0.0, 1, MOST_BOUND))


def _hash_on(read: Reader, node: Node) -> str:
    try:
        return hash_on(read.string(node, "source"))
    except BadName as error:
        read.bad(node, error.message, error.hint)
        return ""


def retries_of(read: Reader, node: Node | None, timeout_ms: int) -> Retries | None:
    """A table of retries, wherever it stands; ``timeout_ms``: of all tries together, 0 for none."""
    if node is None:
        return None
    table = read.table(node, schema.RETRIES)
    default = Retries(node.place)
    on = tuple(read.choice(item, "", RETRY_ON) for item, _ in read.strings(table.get("on")))
    per_try_timeout = read.duration_ms(table.get("per_try_timeout"), default.per_try_timeout_ms)
    if timeout_ms and per_try_timeout > timeout_ms:
        place, message = table["per_try_timeout"].place, "per_try_timeout is longer than timeout"
        read.findings.add(Code.BAD_VALUE, place, message, "it would never be reached")
    backoff, max_backoff = _backoff(read, table, default)
    return Retries(
        node.place,
        read.integer(table.get("attempts"), default.attempts, 1, 10),
        per_try_timeout,
        on if "on" in table else default.on,
        read.ratio(table.get("budget"), default.budget),
        read.boolean(table.get("non_idempotent"), default.non_idempotent),
        backoff,
        max_backoff,
    )


def _backoff(read: Reader, table: dict[str, Node], default: Retries) -> tuple[int, int]:
    """What it begins with and what it grows to; where one is said the other follows."""
    backoff = read.duration_ms(table.get("backoff"), default.backoff_ms)
    most = read.duration_ms(
        table.get("max_backoff"), max(backoff, _MAX_BACKOFF_MS) if backoff else default.max_backoff_ms
    )
    if most < backoff:
        read.bad(table["max_backoff"], "max_backoff is shorter than backoff", "the wait grows from one to the other")
    return (backoff or min(_BACKOFF_MS, most), most)


def hedge_of(read: Reader, node: Node | None, timeout_ms: int) -> Hedge | None:
    """A table of hedging, wherever it stands; ``timeout_ms``: of all tries together, 0 for none."""
    if node is None:
        return None
    table = read.table(node, schema.HEDGE)
    default = Hedge(0)
    after = read.duration_ms(table.get("after"), 0)
    if isinstance(node.data, dict) and "after" not in table:
        read.findings.add(Code.MISSING, node.place, "hedge lacks 'after'", 'for example: after = "100ms"')
    elif timeout_ms and after >= timeout_ms:
        message = "after is no shorter than timeout"
        read.findings.add(Code.BAD_VALUE, table["after"].place, message, "it would never be reached")
    return Hedge(
        after,
        read.integer(table.get("attempts"), default.attempts, 2, MOST_HEDGES),
        read.boolean(table.get("non_idempotent"), default.non_idempotent),
    )


def hedge_as_sent(hedge: Hedge | None) -> wire.Hedge | None:
    """The same in the words of the snapshot."""
    if hedge is None:
        return None
    return wire.Hedge(after_ms=hedge.after_ms, attempts=hedge.attempts, non_idempotent=hedge.non_idempotent)


def as_sent(retries: Retries | None) -> wire.Retries | None:
    """The same in the words of the snapshot."""
    if retries is None:
        return None
    return wire.Retries(
        attempts=retries.attempts,
        per_try_timeout_ms=retries.per_try_timeout_ms,
        on=list(retries.on),
        budget=retries.budget,
        non_idempotent=retries.non_idempotent,
        backoff_ms=retries.backoff_ms,
        max_backoff_ms=retries.max_backoff_ms,
    )
