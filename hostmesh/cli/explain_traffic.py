"""Tells how a service is called: by which way, how an endpoint is chosen, within which limits, each with its place."""

from collections.abc import Iterator

from hostmesh.policy.route_choice import Asked, hash_value
from hostmesh.wire.snapshot import Breaker, Endpoint, Retries, Route, Service, Snapshot, TokenIssuer, Traffic, Unit

_SAID_OF_CONNECTING = {"connect-failure", "5xx", "gateway-error"}  # docs/policy.md, [traffic.retries]
_NEAR = ("this host", "this zone", "elsewhere")


def way(snapshot: Snapshot, service: Service) -> str:
    """From the caller's connection to the endpoints: listeners, and what is between."""
    taken = f"taken on port {snapshot.listeners.outbound} of this host (outbound)"
    here = [one for one in service.endpoints if one.host == snapshot.host]
    there = [one for one in service.endpoints if one.host != snapshot.host]
    onward = [f"to {_named(one)} within this host, no wire" for one in here]
    onward += [f"to {_named(one)} by mTLS on port {one.wire_port} (wire)" for one in there]
    return "\n    ".join([taken, *(onward or ["nobody serves it: 503, no-endpoint"])])


def plain_way(snapshot: Snapshot, unit: Unit) -> str:
    """Of a caller without identity."""
    return f"taken on port {snapshot.listeners.plaintext} of this host (plaintext), to {unit.unit} on this host"


def choice(snapshot: Snapshot, service: Service, asked: Asked | None) -> Iterator[str]:
    """How one of the endpoints is chosen."""
    traffic, endpoints = service.traffic, service.endpoints
    if not endpoints:
        yield "nobody serves it: 503, no-endpoint"
        return
    among = ", ".join(_named(one) for one in endpoints)
    if len(endpoints) == 1:
        yield f"by {among}"
    else:
        yield f"one of {len(endpoints)} by {_balance(traffic, asked)}: {among}"
        if not (traffic.retries and _SAID_OF_CONNECTING & set(traffic.retries.on)):
            yield "one to which there is no connection is passed over: each other one is asked once (by default)"
    if traffic.prefer == "near":
        groups = zip(_NEAR, _by_distance(snapshot, endpoints), strict=True)
        counts = ", ".join(f"{name} {len(group)}" for name, group in groups)
        yield f"the nearest first, by the capacity that is left there: {counts} ({place(traffic, 'prefer')})"
    if traffic.slow_start_ms:
        grows = f"one that joins has its full share after {seconds(traffic.slow_start_ms)}"
        yield f"{grows} ({place(traffic, 'slow_start')})"
    if traffic.panic:
        few = f"with fewer than {traffic.panic:.0%} of them healthy all count as healthy"
        yield f"{few} ({place(traffic, 'panic')})"


def _balance(traffic: Traffic, asked: Asked | None) -> str:
    by, said = traffic.balance, f" ({place(traffic, 'balance')})" if "balance" in traffic.lines else " (by default)"
    if traffic.hash is None:
        return by + said
    value = hash_value(traffic.hash.on, asked) if asked else None
    goes = f"{by} on {traffic.hash.on}"
    if asked:
        goes += f" = {value.decode(errors='replace')!r}" if value is not None else ", which it lacks: least-request"
    if traffic.hash.bound:
        goes += f", none above {traffic.hash.bound:g} times the mean"
    return goes + said


def _by_distance(
    snapshot: Snapshot, endpoints: list[Endpoint]
) -> tuple[list[Endpoint], list[Endpoint], list[Endpoint]]:
    here = [one for one in endpoints if one.host == snapshot.host]
    near = [one for one in endpoints if one.host != snapshot.host and snapshot.zone and one.zone == snapshot.zone]
    return here, near, [one for one in endpoints if one not in here and one not in near]


def limits(traffic: Traffic, route: Route | None) -> Iterator[str]:
    """Times, retries and the breaker in force."""
    own_time, own_retries = (route.timeout_ms, route.retries) if route else (0, None)
    by_route = route.rule if route else ""
    if timeout := own_time or traffic.timeout_ms:
        where = by_route if own_time else place(traffic, "timeout")
        yield f"in {seconds(timeout)} at most, all tries together ({where})"
    if traffic.connect_timeout_ms:
        yield f"connected within {seconds(traffic.connect_timeout_ms)} ({place(traffic, 'connect_timeout')})"
    if traffic.idle_timeout_ms:
        idle = f"ended when nothing moves for {seconds(traffic.idle_timeout_ms)}"
        yield f"{idle} ({place(traffic, 'idle_timeout')})"
    if retries := own_retries or traffic.retries:
        yield f"{_tries(retries)} ({by_route if own_retries else place(traffic, 'retries')})"
        if not retries.non_idempotent:
            yield "what is not idempotent is tried again only where nothing of it reached the service"
    own_hedge = route.hedge if route else None
    if hedge := own_hedge or traffic.hedge:
        which = "any method" if hedge.non_idempotent else "where the method may repeat"
        more = f"another endpoint is asked, too, after {seconds(hedge.after_ms)}, {which}, {hedge.attempts} in all"
        yield f"{more} ({by_route if own_hedge else place(traffic, 'hedge')})"
    if traffic.breaker:
        yield from _breaker(traffic.breaker)


def _tries(retries: Retries) -> str:
    each = f" of {seconds(retries.per_try_timeout_ms)} each" if retries.per_try_timeout_ms else ""
    waits = f", {retries.backoff_ms} to {retries.max_backoff_ms} ms apart" if retries.backoff_ms else ""
    after = ", ".join(retries.on)
    return f"{retries.attempts} tries{each}{waits}, after {after}, at most {retries.budget:.0%} more requests"


def _breaker(breaker: Breaker) -> Iterator[str]:
    most = (
        (breaker.max_connections, "connections"),
        (breaker.max_pending, "waiting for one"),
        (breaker.max_requests, "requests"),
        (breaker.max_retries, "retries"),
    )
    said = [f"{count} {what}" for count, what in most if count]
    if said:
        yield f"of all callers of this host at most {', '.join(said)} at once, else 503, breaker-open ({breaker.rule})"
    if breaker.consecutive_errors:
        left = f"an endpoint is left alone for {seconds(breaker.eject_ms)} after {breaker.consecutive_errors} errors"
        yield f"{left} in a row, at most {breaker.max_ejected:.0%} of them ({breaker.rule})"


def tokens(issuers: list[TokenIssuer]) -> str:
    """Whose tokens a unit believes."""
    return "\n    ".join(
        f"{one.issuer}, for {', '.join(one.audience)}, from {one.token}, {_keys(len(one.keys))} ({one.rule})"
        for one in issuers
    )


def _keys(count: int) -> str:
    return (
        f"{count} {'key' if count == 1 else 'keys'} known"
        if count
        else "NO KEY KNOWN: none of them is believed, hostmesh status says why"
    )


def place(traffic: Traffic, word: str) -> str:
    """Where it stands in the file of the service's owner."""
    file, _, line = traffic.rule.rpartition(":")
    file = file if line.isdigit() else traffic.rule
    if file and word in traffic.lines:
        return f"{file}:{traffic.lines[word]}"
    return traffic.rule or "the service's policy"


def seconds(milliseconds: int) -> str:
    """As a person writes it."""
    return f"{milliseconds / 1000:g} s"


def _named(endpoint: Endpoint) -> str:
    return f"{endpoint.unit} on {endpoint.host}"
