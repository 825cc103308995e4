"""Turns the controller's last word and what is declared and ready here into the services of this host's snapshot. Pure.

Of other hosts the controller knows; of this host the host itself does, with all controllers dead too.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from hostmesh.names import SpiffeId, UnitName, sni_of
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.snapshot import traffic_of
from hostmesh.policy.model import Policy
from hostmesh.policy.settings import Settings
from hostmesh.wire.controller import WatchEvent, Workload
from hostmesh.wire.snapshot import Endpoint, Service, ServicePort

NOTHING = WatchEvent(revision=0, full=True, services=[], removed=[], trust_bundle=[], vip_ranges=[])


def after(known: WatchEvent, event: WatchEvent) -> WatchEvent:
    """All that is known once ``event`` has come: again a full one, which is also what is kept on disk."""
    services = {} if event.full else {service.name: service for service in known.services}
    conflicts = {} if event.full else dict(known.conflicts)
    for name in [*event.removed, *(service.name for service in event.services)]:
        services.pop(name, None)
        conflicts.pop(name, None)
    services.update({service.name: service for service in event.services})
    return msgspec.structs.replace(
        event,
        full=True,
        removed=[],
        services=[services[name] for name in sorted(services)],
        conflicts={**conflicts, **event.conflicts},
    )


def workloads(policies: Iterable[Policy], facts: HostFacts) -> list[Workload]:
    """What this host publishes: every unit that serves something, and whether it is ready by systemd's own word.

    Also what is stopped, failed or not installed yet: the policy alone makes the service's name stand.
    """
    return [
        Workload(
            unit=policy.unit.full,
            service=policy.service,
            ports=[(port.number, port.protocol.value) for port in policy.ports],
            traffic=traffic_of(policy),
            ready=(known := facts.units.get(policy.unit)) is not None and known.active,
        )
        for policy in sorted(policies, key=lambda policy: policy.unit)
        if policy.ports
    ]


def still_ready(said: Iterable[Workload], now: Iterable[Workload]) -> list[Workload]:
    """What was said before, with those ready no more that are not ready now."""
    ready = {workload.unit for workload in now if workload.ready}
    return [msgspec.structs.replace(load, ready=load.ready and load.unit in ready) for load in said]


def effective(
    settings: Settings,
    catalog: WatchEvent,
    declared: Sequence[Workload],
    refused: Mapping[str, str],
    facts: HostFacts,
) -> list[Service]:
    """The services as this host sees them: its own endpoints by what is ready here, all others by the catalog.

    refused: units whose workloads the controller did not take; they serve nobody. A service that only this host knows
    has no VIP: it can be called by the host's address.
    """
    taken = [workload for workload in declared if workload.unit not in refused]
    mine: dict[str, list[Workload]] = {}
    for workload in taken:
        mine.setdefault(workload.service, []).append(workload)
    known = {service.name: service for service in catalog.services}
    services = []
    for name in sorted(known.keys() | mine.keys()):
        service = known.get(name) or _alone(mine[name])
        others = [endpoint for endpoint in service.endpoints if endpoint.host != facts.host]
        own = [_endpoint(settings, workload, facts) for workload in mine.get(name, []) if workload.ready]
        endpoints = sorted([*others, *own], key=lambda endpoint: (endpoint.host, endpoint.unit))
        services.append(msgspec.structs.replace(service, endpoints=endpoints))
    return services


def _alone(declaring: Sequence[Workload]) -> Service:
    ports = {number: protocol for workload in declaring for number, protocol in workload.ports}
    return Service(
        name=declaring[0].service,
        vips=[],
        ports=[ServicePort(number, number, protocol) for number, protocol in sorted(ports.items())],
        traffic=declaring[0].traffic,
        endpoints=[],
    )


def _endpoint(settings: Settings, workload: Workload, facts: HostFacts) -> Endpoint:
    identity = SpiffeId.of_unit(settings.trust_domain, UnitName(workload.unit))
    return Endpoint(
        unit=workload.unit,
        host=facts.host,
        spiffe_id=str(identity),
        sni=sni_of(identity),
        addresses=list(facts.addresses),
        wire_port=settings.ports.wire,
        zone=settings.zone,
    )
