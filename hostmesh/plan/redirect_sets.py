"""Turns policies and unit numbers into the sets and maps of `table inet hostmesh`: what policy says to its chains."""

import ipaddress
from collections.abc import Iterable, Sequence

from hostmesh.plan.facts import HostFacts
from hostmesh.plan.ruleset import Element, Set
from hostmesh.policy.model import Mode, Policy
from hostmesh.policy.settings import Settings

CGROUP = "socket cgroupv2 level 2"

COUNTERS = ("refused_listener", "refused_plaintext", "refused_outbound", "refused_source")
"""Sets that count refusals exactly, by unit number: each element is a mark and its counter."""

REPLIES = "replies"
"""Begins the names of sets that packets fill with whose replies may come in."""


def mark(bit: int, number: int) -> str:
    """A mark as nft lists it: flag bits and unit number."""
    return f"{bit | number:#010x}"


def unit_sets(settings: Settings, policies: Sequence[Policy], facts: HostFacts) -> tuple[Set, ...]:
    units, meshed, listeners, unrestricted = [], [], [], []
    nets: dict[str, list[tuple[str, str, str]]] = {"egress4": [], "egress6": [], "egress_any4": [], "egress_any6": []}
    for policy in policies:
        cgroup, number = f'"{policy.unit.cgroup}"', facts.numbers[policy.unit]
        outbound = mark(settings.marks.outbound, number)
        place = policy.place.rule
        units.append(Element(cgroup, outbound, place))
        meshed.append(Element(cgroup, comment=place))
        inbound = settings.marks.inbound
        for bits in (inbound, inbound | settings.marks.delivered):
            listeners.append(Element(f"{cgroup} . {mark(bits, number)}", comment=place))
        if policy.outbound is None:
            unrestricted.append(Element(outbound, comment=place))
        for rule in policy.outbound or ():
            if rule.network:
                version = ipaddress.ip_network(rule.network).version
                port = f" . {rule.port}" if rule.port else ""
                name = f"egress{version}" if rule.port else f"egress_any{version}"
                nets[name].append((f"{outbound} . ", rule.network, port + "\0" + rule.place.rule))
    interval = ("flags interval",)
    sized = ("size 4096", "flags dynamic", "counter")
    return (
        Set("units", CGROUP, tuple(units), data="meta mark"),
        Set("meshed", CGROUP, tuple(meshed)),
        Set("listeners", f"{CGROUP} . meta mark", tuple(listeners)),
        Set("unrestricted", "meta mark", tuple(unrestricted)),
        Set("egress4", "meta mark . ip daddr . th dport", _networks(nets["egress4"]), options=interval),
        Set("egress6", "meta mark . ip6 daddr . th dport", _networks(nets["egress6"]), options=interval),
        Set("egress_any4", "meta mark . ip daddr", _networks(nets["egress_any4"]), options=interval),
        Set("egress_any6", "meta mark . ip6 daddr", _networks(nets["egress_any6"]), options=interval),
        *(Set(name, "meta mark", options=sized, dynamic=True) for name in COUNTERS),
    )


def address_sets(policies: Sequence[Policy], vip_ranges: Sequence[str]) -> tuple[Set, ...]:
    sources: dict[int, list[tuple[str, str, str]]] = {4: [], 6: []}
    local: dict[int, str] = {}
    for policy in policies:
        for source, ports, place in _plaintext_sources(policy):
            for port in ports:
                if source == "local":
                    local.setdefault(port, place)
                else:
                    network = ipaddress.ip_network(source)
                    sources[network.version].append(("", str(network), f" . {port}\0{place}"))
    vips = {4: [], 6: []} if not vip_ranges else {
        version: [
            Element(text, comment="addresses of services")
            for text in sorted(set(vip_ranges))
            if ipaddress.ip_network(text).version == version
        ]
        for version in (4, 6)
    }  # fmt: skip
    replies = ("size 65536", "flags dynamic,timeout", "timeout 1m")
    return (
        Set("plaintext4", "ip saddr . tcp dport", _networks(sources[4]), options=("flags interval",)),
        Set("plaintext6", "ip6 saddr . tcp dport", _networks(sources[6]), options=("flags interval",)),
        Set("plaintext_local", "tcp dport", tuple(Element(str(p), comment=r) for p, r in sorted(local.items()))),
        Set("vips4", "ip daddr", tuple(vips[4]), options=("flags interval",)),
        Set("vips6", "ip6 daddr", tuple(vips[6]), options=("flags interval",)),
        Set("replies4", "ip saddr . udp sport . udp dport", options=replies, dynamic=True),
        Set("replies6", "ip6 saddr . udp sport . udp dport", options=replies, dynamic=True),
    )


def _plaintext_sources(policy: Policy) -> Iterable[tuple[str, tuple[int, ...], str]]:
    """(source, ports, place) of all callers without identity that go to the proxy: under audit that is everybody."""
    declared = tuple(port.number for port in policy.ports)
    for rule in policy.plaintext:
        for source in rule.sources:
            yield source, rule.ports or declared, rule.place.rule
    if policy.mode is Mode.AUDIT:
        for source in ("0.0.0.0/0", "::/0", "local"):
            yield source, declared, policy.inbound_place.rule


def _networks(entries: Sequence[tuple[str, str, str]]) -> tuple[Element, ...]:
    """Elements (before, network, after NUL comment) without those that another of the same kind contains.

    CIDR networks nest or are apart, and the kernel refuses elements that overlap.
    """
    kept: dict[tuple[str, str], dict[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = {}
    for before, text, rest in entries:
        after, _, place = rest.partition("\0")
        kept.setdefault((before, after), {}).setdefault(ipaddress.ip_network(text), place)
    found = []
    for (before, after), networks in kept.items():
        for network, place in networks.items():
            if not any(network != other and _inside(network, other) for other in networks):
                found.append(Element(f"{before}{_plain(network)}{after}", comment=place))
    return tuple(sorted(found))


def _inside(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network, other: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    return other.prefixlen <= network.prefixlen and network.network_address in other


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """As nft lists it: a network of one address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
