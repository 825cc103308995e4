"""Turns policy rules and routes into the kernel's, and back (rtnetlink(7)).

Ours are known by their protocol number, so nothing of anybody else is ever listed here, changed or removed.
"""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from hostmesh.errors import HostmeshError
from hostmesh.plan.routing import PROTOCOL, PolicyRule, Route
from hostmesh.plan.surroundings import OtherRule

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TYPES = {"unicast": 1, "local": 2}  # RTN_UNICAST, RTN_LOCAL
_LOOPBACK = 1
_RUNNING = ("UP", "UNKNOWN")  # RFC 2863; links without carrier detection say UNKNOWN
_EXACT = 0xFFFFFFFF
_INVERT, _TO_TABLE = 2, 1  # FIB_RULE_INVERT, FR_ACT_TO_TBL
_SELECTORS = (
    "FRA_IIFNAME",
    "FRA_OIFNAME",
    "FRA_IP_PROTO",
    "FRA_SPORT_RANGE",
    "FRA_DPORT_RANGE",
    "FRA_UID_RANGE",
)


class RouteError(HostmeshError):
    """The kernel refused a rule or a route."""


class Netlink:
    """The door to rules, routes and addresses of the network namespace in which it is used."""

    async def rules(self) -> frozenset[PolicyRule]:
        """All rules of ours."""
        found = set()
        for version, family in _FAMILIES.items():
            async for rule in _dump_rules(family):
                if rule.get("FRA_PROTOCOL") == PROTOCOL:
                    priority, mark = rule.get("FRA_PRIORITY"), rule.get("FRA_FWMARK")
                    found.add(PolicyRule(version, priority, mark, _table(rule, "FRA_TABLE")))
        return frozenset(found)

    async def others(self) -> tuple[OtherRule, ...]:
        """All rules that are not ours, in the kernel's order."""
        found = []
        for version, family in _FAMILIES.items():
            defaults = {_table(route, "RTA_TABLE") async for route in _dump_routes(family) if route["dst_len"] == 0}
            async for rule in _dump_rules(family):
                if rule.get("FRA_PROTOCOL") != PROTOCOL:
                    found.append(_other_rule(version, rule, defaults))
        return tuple(found)

    async def routes(self) -> frozenset[Route]:
        """All routes of ours."""
        found = set()
        for version, family in _FAMILIES.items():
            async for route in _dump_routes(family):
                if route["proto"] == PROTOCOL:
                    found.add(_read_route(version, route))
        return frozenset(found)

    async def addresses(self) -> tuple[str, ...]:
        """Global unicast addresses of links that run, IPv4 first, in the kernel's order; no temporary IPv6 ones."""
        found: dict[int, list[str]] = {4: [], 6: []}
        async with _kernel("list addresses") as ip:
            links = await ip.get_links()
            up = {link["index"] async for link in links if link.get("IFLA_OPERSTATE") in _RUNNING} - {_LOOPBACK}
            async for address in await ip.get_addr():
                flags = address.get("IFA_FLAGS") or address["flags"]
                temporary, tentative = flags & 0x01 and address["family"] == socket.AF_INET6, flags & 0x48
                if address["scope"] == 0 and address["index"] in up and not temporary and not tentative:
                    version = 4 if address["family"] == socket.AF_INET else 6
                    found[version].append(address.get("IFA_LOCAL") or address.get("IFA_ADDRESS"))
        return (*found[4], *found[6])

    async def add_rule(self, rule: PolicyRule) -> None:
        await self._ask("rule", "add", _rule_request(rule), present=errno.EEXIST)

    async def delete_rule(self, rule: PolicyRule) -> None:
        await self._ask("rule", "del", _rule_request(rule), present=errno.ENOENT)

    async def add_route(self, route: Route) -> None:
        # `replace`: a VIP route whose source changed has the same key.
        await self._ask("route", "replace", _route_request(route), present=errno.EEXIST)

    async def delete_route(self, route: Route) -> None:
        await self._ask("route", "del", _route_request(route), present=errno.ESRCH)

    async def _ask(self, kind: str, verb: str, request: dict[str, object], present: int) -> None:
        async with _kernel(f"{verb} {kind} {request}", present) as ip:
            await getattr(ip, kind)(verb, **request)


@asynccontextmanager
async def _kernel(what: str, harmless: int = 0) -> AsyncIterator["AsyncIPRoute"]:
    """A conversation with rtnetlink. Raises `RouteError` for any errno but ``harmless``."""
    from pyroute2 import AsyncIPRoute  # noqa: PLC0415  takes a third of a second, and few verbs need it
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    async with AsyncIPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            if error.code != harmless:
                raise RouteError(f"{what}: {error}", "rtnetlink(7); this needs CAP_NET_ADMIN") from error


async def _dump_rules(family: int) -> AsyncIterator[Any]:
    async with _kernel("list rules") as ip:
        async for rule in await ip.get_rules(family=family):
            yield rule


async def _dump_routes(family: int) -> AsyncIterator[dict]:  # type: ignore[type-arg]
    async with _kernel("list routes") as ip:
        async for route in await ip.get_routes(family=family):
            yield route


def _table(message: dict, attribute: str) -> int:  # type: ignore[type-arg]
    """The attribute where there is one: the header's field has room for 255."""
    return int(message.get(attribute) or message["table"])


def _other_rule(version: int, rule: dict, defaults: set[int]) -> OtherRule:  # type: ignore[type-arg]
    table = _table(rule, "FRA_TABLE")
    mark = rule.get("FRA_FWMARK") or 0
    mask = rule.get("FRA_FWMASK")
    looks_at = any(rule.get(name) is not None for name in _SELECTORS) or rule["src_len"] or rule["dst_len"]
    takes = table in defaults and rule.get("FRA_SUPPRESS_PREFIXLEN") in (None, _EXACT)
    return OtherRule(
        version,
        rule.get("FRA_PRIORITY") or 0,
        mark,
        mask if mask is not None else (_EXACT if mark else 0),
        table,
        inverted=bool(rule["flags"] & _INVERT),
        selective=bool(looks_at),
        everything=takes or rule["action"] != _TO_TABLE,
    )


def _read_route(version: int, route: dict) -> Route:  # type: ignore[type-arg]
    table = _table(route, "RTA_TABLE")
    everything = "0.0.0.0" if version == 4 else "::"  # noqa: S104 a destination, nothing is bound
    destination = f"{route.get('RTA_DST') or everything}/{route['dst_len']}"
    kind = next((name for name, number in _TYPES.items() if number == route["type"]), str(route["type"]))
    return Route(version, destination, table, kind, route.get("RTA_PREFSRC") or "")


def _rule_request(rule: PolicyRule) -> dict[str, object]:
    return {
        "family": _FAMILIES[rule.version],
        "priority": rule.preference,
        "fwmark": rule.mark,
        "fwmask": rule.mark,
        "table": rule.table,
        "protocol": PROTOCOL,
    }


def _route_request(route: Route) -> dict[str, object]:
    request: dict[str, object] = {
        "family": _FAMILIES[route.version],
        "dst": route.destination,
        "oif": _LOOPBACK,
        "table": route.table,
        "type": _TYPES[route.kind],
        "scope": 254 if route.kind == "local" and route.version == 4 else (253 if route.version == 4 else 0),
        "proto": PROTOCOL,
    }
    if route.source:
        request["prefsrc"] = route.source
    return request
