"""Turns (Catalog, Event) into the next Catalog.

Law: every event carries the revision at which it happened, and a host's youngest event wins; so the same events end in
the same catalog in whatever order they come, and coming twice changes nothing. Pure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hostmesh.names import UnitName
from hostmesh.registry.catalog import (
    Catalog,
    Claim,
    Host,
    RangeError,
    Workload,
    capacity,
    conflict_of,
    owner_of,
    service_of,
)
from hostmesh.registry.catalog import allocate as allocate_claim
from hostmesh.wire.snapshot import Traffic

MOST_NAMES = 1024
"""Service names that one owner may have: instances of a template share them."""


@dataclass(frozen=True, slots=True)
class Published:
    """A host said what it declares, and what of it is ready: all of it."""

    host: Host


@dataclass(frozen=True, slots=True)
class FellSilent:
    """A host was not heard of for too long: its endpoints go, its word and with it its services' names are kept."""

    name: str
    revision: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A host was taken out of the mesh by a person."""

    name: str
    revision: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A service name got its VIP and its owner, by `claims_for`. The VIP never changes; an owner can be released."""

    service: str
    claim: Claim


Event = Published | FellSilent | Removed | Claimed


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host publishes of one unit, before it has a revision."""

    unit: UnitName
    service: str
    ports: tuple[tuple[int, str], ...]
    traffic: Traffic
    ready: bool


def apply(catalog: Catalog, event: Event) -> Catalog:
    """The catalog after the event; the same one when the event is older than what is known."""
    match event:
        case Claimed(service, claim):
            return replace(catalog, claims={**catalog.claims, service: claim})
        case Published(Host(name=name, revision=revision)) | FellSilent(name, revision) | Removed(name, revision):
            if revision <= _last_word(catalog, name):
                return catalog
    if isinstance(event, FellSilent):
        at = max(revision, catalog.silent.get(name, 0))
        return replace(catalog, silent={**catalog.silent, name: at})
    hosts, gone, old = dict(catalog.hosts), dict(catalog.gone), catalog.hosts.get(name)
    if isinstance(event, Published):
        hosts[name] = event.host
    else:
        hosts.pop(name, None)
        gone[name] = revision
    where = _moved(catalog.where, old, hosts.get(name))
    return _without_older(replace(catalog, hosts=hosts, gone=gone, where=where), name, revision)


def _moved(where: Mapping[str, frozenset[str]], old: Host | None, new: Host | None) -> dict[str, frozenset[str]]:
    moved = dict(where)
    for host, add in ((old, False), (new, True)):
        if host is None:
            continue
        for load in host.workloads:
            names = moved.get(load.service, frozenset()) - {host.name}
            moved[load.service] = names | {host.name} if add else names
    return {service: names for service, names in moved.items() if names}


def _last_word(catalog: Catalog, name: str) -> int:
    known = catalog.hosts.get(name)
    return max(known.revision if known else 0, catalog.gone.get(name, 0))


def _without_older(catalog: Catalog, name: str, revision: int) -> Catalog:
    silent = {key: at for key, at in catalog.silent.items() if key != name or at > revision}
    gone = {key: at for key, at in catalog.gone.items() if key != name or at >= revision}
    return replace(catalog, silent=silent, gone=gone)


def replay(catalog: Catalog, events: Iterable[Event]) -> Catalog:
    """All events, one after the other."""
    for event in events:
        catalog = apply(catalog, event)
    return catalog


def stamp(known: Host | None, offers: Iterable[Offer], revision: int) -> tuple[Workload, ...]:
    """Gives what a host offers its ``since``: that of before, where ports and traffic are as they were. By unit."""
    before = {workload.unit: workload for workload in known.workloads} if known else {}
    stamped = []
    for offer in sorted(offers, key=lambda o: o.unit):
        old = before.get(offer.unit)
        same = old and (old.service, old.ports, old.traffic) == (offer.service, offer.ports, offer.traffic)
        since = old.since if old and same else revision
        stamped.append(Workload(offer.unit, offer.service, offer.ports, offer.traffic, since, offer.ready))
    return tuple(stamped)


def admit(catalog: Catalog, offers: Iterable[Offer]) -> tuple[list[Offer], dict[UnitName, str]]:
    """Keeps the offers whose service name is free or their own; the owner's name for the others.

    Whoever claims a name first owns it: a stolen host must not answer for other units' services.
    """
    owners = {name: claim.owner for name, claim in catalog.claims.items() if claim.owner}
    admitted, foreign = [], {}
    for offer in sorted(offers, key=lambda o: (o.service, o.unit)):
        owner = owners.setdefault(offer.service, owner_of(offer.unit))
        if owner == owner_of(offer.unit):
            admitted.append(offer)
        else:
            foreign[offer.unit] = owner
    return admitted, foreign


def claims_for(catalog: Catalog, offers: Iterable[Offer]) -> list[Claimed]:
    """The claims that these offers need and nobody made yet. Raises `RangeError` when the ranges are used up, or one
    owner wants more than `MOST_NAMES`: a name stays for ever, and a stolen host must not use up those of the mesh."""
    made: dict[str, Claim] = {}
    size = capacity(catalog.vip_ranges)
    held = Counter(claim.owner for claim in catalog.claims.values())
    for offer in sorted(offers, key=lambda o: o.service):
        known = catalog.claims.get(offer.service)
        if offer.service in made or (known and known.owner):
            continue
        owner = owner_of(offer.unit)
        held[owner] += 1
        if held[owner] > MOST_NAMES:
            raise RangeError(f"{owner} has {MOST_NAMES} service names", "release some at the controller")
        if known:
            made[offer.service] = Claim(known.index, owner)
        else:
            claims = {**catalog.claims, **made}
            made[offer.service] = allocate_claim(claims, offer.service, owner, size)
    return [Claimed(service, claim) for service, claim in made.items()]


def changed_services(before: Catalog, after: Catalog) -> frozenset[str]:
    """Names of the services that callers see differently now."""
    names: set[str] = set()
    for host in before.hosts.keys() | after.hosts.keys():
        old, new = before.hosts.get(host), after.hosts.get(host)
        if (old is not new and old != new) or (host in before.silent) != (host in after.silent):
            names |= {load.service for known in (old, new) if known for load in known.workloads}
    return frozenset(
        name
        for name in names
        if service_of(before, name) != service_of(after, name) or conflict_of(before, name) != conflict_of(after, name)
    )
