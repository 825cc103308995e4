"""Turns what a host says of its workloads and addresses into what may stand in the catalog.

Law: every host of the mesh takes the whole catalog or nothing of it, so nothing enters that one of them would refuse. A
stolen host speaks here as well: what a policy file could not say, it can't either, and its addresses are its own.
"""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from hostmesh.identity.attest import may_run_of
from hostmesh.names import BadName, UnitName, check_service_name, check_zone_name
from hostmesh.policy.model import Protocol
from hostmesh.policy.route_law import MOST_ROUTES, wrong
from hostmesh.policy.traffic import (
    BALANCES,
    CONSISTENT_HASH,
    MOST_BOUND,
    MOST_ERRORS,
    MOST_HEDGES,
    MOST_IN_USE,
    PREFER,
    RETRY_ON,
)
from hostmesh.policy.words import hash_on
from hostmesh.registry.catalog import Catalog, owner_of
from hostmesh.registry.events import Offer
from hostmesh.wire.controller import Workload
from hostmesh.wire.snapshot import Breaker, Hedge, Retries, Traffic

_DAY_MS = 86_400_000
_MOST_ATTEMPTS = 10
_MOST_WORDS = 32  # and letters of one
_MOST_PORTS = 256
_MOST_ADDRESSES = 64
_LONGEST_RULE = 512


def offer(workload: Workload) -> Offer:
    """One workload as the registry takes it. Raises `BadName` for what no policy could have said."""
    if len(workload.ports) > _MOST_PORTS:
        raise BadName(f"{len(workload.ports)} ports", f"at most {_MOST_PORTS}")
    for number, protocol in workload.ports:
        check_port(number)
        _one_of(protocol, tuple(Protocol), "a protocol")
    _check_traffic(workload.traffic)
    service = check_service_name(workload.service)
    return Offer(UnitName(workload.unit), service, tuple(workload.ports), workload.traffic, workload.ready)


def led_astray(catalog: Catalog, host: str, one: Offer, grants: Iterable[str]) -> str:
    """Why the routes of an offer are not taken; empty if they are.

    Callers follow a route with their own identity and rights: a stolen host must not send what they ask of its service
    to others'. So a host may lead to the services of those units only that it may run itself.
    """
    grants = tuple(grants)
    for route in one.traffic.routes:
        mirror = [route.mirror.to] if route.mirror else []
        for name in (*(share.service for share in route.to), *mirror):
            claim = catalog.claims.get(name)
            owner = claim.owner if claim else ""
            if owner and owner != owner_of(one.unit) and not may_run_of(grants, owner):
                why = f"{route.rule} leads to {name}, which belongs to {owner}: {host} may not run that"
                return f"{why} (hostmesh controller grant {host} {owner})"
    return ""


def check_port(number: int) -> None:
    """Raises `BadName` for a number that is no port."""
    if not 0 < number < 65536:
        raise BadName(f"{number} is not a port", "1 to 65535")


def check_zone(name: str) -> None:
    """Raises `BadName` for what is no zone; a host may be in none."""
    if name:
        check_zone_name(name)


def own_addresses(catalog: Catalog, host: str, said: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses at which a host may be called, and those that are another's: of a host that is heard of, or VIPs.

    Callers reach a service by its endpoints' addresses as well: who could publish any would get other units' traffic.
    Raises `BadName` for text that is no address, or one at which no host can be reached.
    """
    taken = {
        address for other in catalog.hosts.values() if other.name != host and other.name not in catalog.silent
        for address in other.addresses
    }  # fmt: skip
    vips = [ip_network(text) for text in catalog.vip_ranges]
    own: list[str] = []
    foreign: list[str] = []
    for address in dict.fromkeys(_address(text) for text in said):
        parsed = ip_address(address)
        is_vip = any(parsed.version == network.version and parsed in network for network in vips)
        (foreign if is_vip or address in taken else own).append(address)
    if len(own) > _MOST_ADDRESSES:
        raise BadName(f"{len(own)} addresses of one host", f"at most {_MOST_ADDRESSES}")
    return tuple(own), tuple(foreign)


def _address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError as error:
        raise BadName(f"{text!r} is not an address") from error
    if address.is_unspecified or address.is_multicast or address.is_link_local:
        raise BadName(f"nobody can reach a host at {text}")
    return str(address)


def _check_traffic(traffic: Traffic) -> None:
    _check_duration(traffic.timeout_ms)
    _check_balance(traffic)
    _check_rule(traffic.rule)
    if len(traffic.lines) > _MOST_WORDS or any(len(word) > _MOST_WORDS for word in traffic.lines):
        raise BadName("lines of words that [traffic] does not have")
    _check_duration(traffic.connect_timeout_ms)
    _check_duration(traffic.idle_timeout_ms)
    if traffic.breaker:
        _check_breaker(traffic.breaker)
    if traffic.retries:
        _check_retries(traffic.retries)
    if traffic.hedge:
        _check_hedge(traffic.hedge)
    if len(traffic.routes) > MOST_ROUTES:
        raise BadName(f"{len(traffic.routes)} routes", f"at most {MOST_ROUTES}")
    for route in traffic.routes:
        for one in wrong(route):
            raise BadName(f"route {route.name}, {'.'.join(one.keys)}: {one.message}", one.hint)
        _check_duration(route.timeout_ms)
        if route.retries:
            _check_retries(route.retries)
        if route.hedge:
            _check_hedge(route.hedge)


def _check_hedge(hedge: Hedge) -> None:
    _check_duration(hedge.after_ms)
    if hedge.after_ms == 0 or not 2 <= hedge.attempts <= MOST_HEDGES:
        raise BadName(f"hedging after {hedge.after_ms} ms, {hedge.attempts} attempts", f"2 to {MOST_HEDGES} attempts")


def _check_retries(retries: Retries) -> None:
    _check_duration(retries.per_try_timeout_ms)
    if not 1 <= retries.attempts <= _MOST_ATTEMPTS:
        raise BadName(f"{retries.attempts} attempts", f"1 to {_MOST_ATTEMPTS}")
    if not 0 <= retries.budget <= 1:
        raise BadName(f"a budget of {retries.budget}", "0 to 1")
    for word in retries.on:
        _one_of(word, RETRY_ON, "a reason to try again")
    _check_duration(retries.backoff_ms)
    _check_duration(retries.max_backoff_ms)
    if retries.max_backoff_ms < retries.backoff_ms:
        raise BadName("max_backoff is shorter than backoff")


def _check_rule(rule: str) -> None:
    if len(rule) > _LONGEST_RULE or not rule.isprintable():
        raise BadName("the place of a rule is not FILE:LINE")


def _check_breaker(breaker: Breaker) -> None:
    for limit in (breaker.max_connections, breaker.max_pending, breaker.max_requests, breaker.max_retries):
        if not 0 <= limit <= MOST_IN_USE:
            raise BadName(f"a limit of {limit}", f"0 (none) to {MOST_IN_USE}")
    if not 0 <= breaker.consecutive_errors <= MOST_ERRORS or not 0 <= breaker.max_ejected <= 1:
        raise BadName(f"ejection after {breaker.consecutive_errors} errors, of {breaker.max_ejected}")
    _check_duration(breaker.eject_ms)
    if breaker.eject_ms == 0:
        raise BadName("an ejection of 0 ms", "more than that")
    _check_rule(breaker.rule)


def _check_balance(traffic: Traffic) -> None:
    _one_of(traffic.balance, BALANCES, "a balance")
    if (traffic.hash is not None) != (traffic.balance == CONSISTENT_HASH):
        raise BadName(f"a balance of {traffic.balance!r} with or without what it goes by")
    if traffic.hash:
        hash_on(traffic.hash.on)
        if traffic.hash.bound and not 1 <= traffic.hash.bound <= MOST_BOUND:
            raise BadName(f"a bound of {traffic.hash.bound}", f"1 to {MOST_BOUND}")
    _one_of(traffic.prefer, PREFER, "a preference")
    _check_duration(traffic.slow_start_ms)
    if not 0 <= traffic.panic <= 1:
        raise BadName(f"a panic of {traffic.panic}", "0 to 1")


def _check_duration(milliseconds: int) -> None:
    if not 0 <= milliseconds <= _DAY_MS:
        raise BadName(f"{milliseconds} ms is not a duration", "0 (no limit) to a day")


def _one_of(word: str, words: tuple[str, ...], what: str) -> None:
    if word not in words:
        raise BadName(f"{word!r} is not {what}", f"one of {', '.join(words)}")
