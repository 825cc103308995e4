"""Turns settings and addresses into policy rules and routes: values that ip-rule(8) and ip-route(8) would show."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from hostmesh.policy.settings import Settings


@dataclass(frozen=True, slots=True, order=True)
class PolicyRule:
    """``ip -VERSION rule add pref PREFERENCE fwmark MARK/MARK lookup TABLE``."""

    version: int
    preference: int
    mark: int
    table: int


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A route over ``lo``. kind: ``local`` in a table of ours, or ``unicast`` in the main table (254) with a source."""

    version: int
    destination: str
    table: int
    kind: str
    source: str = ""


MAIN_TABLE = 254

PROTOCOL = 73
"""Our mark of origin on rules and routes; free in iproute2's rt_protos."""


def policy_rules(settings: Settings) -> tuple[PolicyRule, ...]:
    """Marked packets come back in over lo: to the proxy (outbound), and answers to it (inbound)."""
    base = settings.route_table
    marks = (settings.marks.outbound, settings.marks.inbound)
    return tuple(
        PolicyRule(version, base + index, mark, base) for version in (4, 6) for index, mark in enumerate(marks)
    )


def routes(settings: Settings, addresses: Sequence[str], vip_ranges: Sequence[str]) -> tuple[Route, ...]:
    """The table of ours, and one unicast route a VIP range with a source of the host's own.

    Unicast, because a ``local`` route would make the VIP its own source and open it to wildcard listeners.
    """
    found = [
        Route(4, "0.0.0.0/0", settings.route_table, "local"),
        Route(6, "::/0", settings.route_table, "local"),
    ]
    for text in sorted(vip_ranges):
        network = ipaddress.ip_network(text)
        own = [address for address in addresses if ipaddress.ip_address(address).version == network.version]
        loopback = "127.0.0.1" if network.version == 4 else "::1"
        found.append(Route(network.version, str(network), MAIN_TABLE, "unicast", own[0] if own else loopback))
    return tuple(found)
