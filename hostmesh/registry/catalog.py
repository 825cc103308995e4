"""Turns what hosts publish into services: who serves them, under which VIP, how callers behave.

Law: a service is there as long as a host of the mesh declares it. Who is ready, and heard of, only decides on its
endpoints: a name and its VIP outlive them. A `Catalog` is a value; `events.py` makes the next one. Pure.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

import msgspec

from hostmesh.errors import HostmeshError
from hostmesh.names import SpiffeId, UnitName, sni_of
from hostmesh.policy.model import Protocol
from hostmesh.policy.route_law import placeless
from hostmesh.wire.snapshot import Endpoint, Service, ServicePort, Traffic


class RangeError(HostmeshError):
    """VIP ranges that cannot be used, or are used up."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One unit of a host that declares a service. ports: (number, protocol) as declared. ready: it serves now.

    ``since``: the revision at which its ports or its traffic policy last changed; the youngest is in force for all. To
    start and to stop is no such change.
    """

    unit: UnitName
    service: str
    ports: tuple[tuple[int, str], ...]
    traffic: Traffic
    since: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Host:
    """What a host said last; revision: when. Addresses and zone are its own, ``wire_port`` its proxy's."""

    name: str
    addresses: tuple[str, ...]
    wire_port: int
    workloads: tuple[Workload, ...]
    revision: int
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A service name's VIP index, and the unit that owns the name (its stem up to ``@``; empty: released)."""

    index: int
    owner: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Hosts publish different `[traffic]` for one service: what is in force, and the others; ``HOST FILE:LINE``."""

    service: str
    in_force: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All hosts and all names.

    silent: hosts not heard of for too long, whose endpoints are withdrawn. gone: hosts taken out. Both with the
    revision, so that an older word does not bring them back. where: which hosts publish a service; follows from hosts.
    """

    trust_domain: str
    vip_ranges: tuple[str, ...]
    hosts: Mapping[str, Host] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)
    where: Mapping[str, frozenset[str]] = field(default_factory=dict)


def owner_of(unit: UnitName) -> str:
    """Who owns a service name that this unit claims: instances of one template (``web@1``, ``web@2``) are one owner."""
    return unit.stem.partition("@")[0]


def capacity(vip_ranges: Iterable[str]) -> int:
    """How many VIPs the smallest range holds; its first and last address are not given out."""
    ranges = [ip_network(text) for text in vip_ranges]
    if not ranges:
        raise RangeError("there is no VIP range", "vip_ranges = [...] in controller.toml")
    size = min(network.num_addresses for network in ranges) - 2
    if size < 1:
        raise RangeError("a VIP range has no room", "IPv4 at most /30, better /16; IPv6 at most /126, better /112")
    return size


def allocate(claims: Mapping[str, Claim], service: str, owner: str, size: int) -> Claim:
    """The claim of a new name. The index comes from the name's hash, so that it survives even a lost store; a taken one
    passes to the next free."""
    taken = {claim.index for claim in claims.values()}
    if len(taken) >= size:
        raise RangeError(f"no VIP is left for {service}: all {size} are given", "widen vip_ranges in controller.toml")
    index = int.from_bytes(hashlib.sha256(service.encode()).digest()[:8]) % size
    while index + 1 in taken:
        index = (index + 1) % size
    return Claim(index + 1, owner)


def vips_of(vip_ranges: Iterable[str], index: int) -> list[str]:
    """One address of every range, at the same place in each."""
    return [str(ip_network(text)[index]) for text in vip_ranges]


def where_published(hosts: Iterable[Host]) -> dict[str, frozenset[str]]:
    """Which hosts publish each service."""
    found: dict[str, set[str]] = {}
    for host in hosts:
        for workload in host.workloads:
            found.setdefault(workload.service, set()).add(host.name)
    return {service: frozenset(names) for service, names in found.items()}


def declaring(catalog: Catalog, service: str) -> list[tuple[Host, Workload]]:
    """Who declares it, ready or not, heard of or not: the youngest definition first."""
    found = [
        (catalog.hosts[name], workload)
        for name in catalog.where.get(service, ())
        for workload in catalog.hosts[name].workloads
        if workload.service == service
    ]
    return sorted(found, key=lambda pair: (-pair[1].since, pair[0].name, pair[1].unit))


def service_of(catalog: Catalog, service: str) -> Service | None:
    """The service as callers see it; None when nobody declares it. Endpoints: of ready workloads on hosts that are not
    silent, perhaps none; in order of host and unit."""
    pairs = declaring(catalog, service)
    if not pairs:
        return None
    serving = [(host, load) for host, load in pairs if load.ready and host.name not in catalog.silent]
    endpoints = [_endpoint(catalog.trust_domain, host, workload) for host, workload in serving]
    return Service(
        name=service,
        vips=vips_of(catalog.vip_ranges, catalog.claims[service].index),
        ports=_ports(workload for _, workload in pairs),
        traffic=pairs[0][1].traffic,
        endpoints=sorted(endpoints, key=lambda e: (e.host, e.unit)),
    )


def conflict_of(catalog: Catalog, service: str) -> Conflict | None:
    """Whether those who declare it disagree on how callers shall behave. Where the rule stands is no disagreement."""
    pairs = declaring(catalog, service)
    if not pairs:
        return None
    said = _words(pairs[0][1].traffic)
    others = tuple(
        sorted(f"{host.name} {load.traffic.rule}" for host, load in pairs[1:] if _words(load.traffic) != said)
    )
    host, load = pairs[0]
    return Conflict(service, f"{host.name} {load.traffic.rule}", others) if others else None


def _words(traffic: Traffic) -> Traffic:
    breaker = traffic.breaker and msgspec.structs.replace(traffic.breaker, rule="")
    routes = [placeless(route) for route in traffic.routes]
    return msgspec.structs.replace(traffic, rule="", breaker=breaker, routes=routes, lines={})


def _endpoint(trust_domain: str, host: Host, workload: Workload) -> Endpoint:
    identity = SpiffeId.of_unit(trust_domain, workload.unit)
    return Endpoint(
        unit=workload.unit.full,
        host=host.name,
        spiffe_id=str(identity),
        sni=sni_of(identity),
        addresses=list(host.addresses),
        wire_port=host.wire_port,
        zone=host.zone,
    )


def _ports(workloads: Iterable[Workload]) -> list[ServicePort]:
    """Every declared port maps to itself; 80 to the first whose requests are read, when 80 itself is not declared."""
    declared: dict[int, str] = {}
    for workload in workloads:
        for number, protocol in workload.ports:
            declared.setdefault(number, protocol)
    ports = [ServicePort(port=number, target=number, protocol=protocol) for number, protocol in declared.items()]
    first = next((number for number, protocol in declared.items() if Protocol(protocol).is_read), None)
    if 80 not in declared and first is not None:
        ports.append(ServicePort(port=80, target=first, protocol=declared[first]))
    return sorted(ports, key=lambda port: port.port)
