"""Turns words of hosts into the next catalog, and its changes into watch events.

Law: the store is written before anybody is told. A watcher gets what changed since its revision, however many changes
that were; one that comes with a revision from before this feed began gets everything.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from hostmesh.controller import ca
from hostmesh.controller.config import Config
from hostmesh.controller.store import StaleError, Store
from hostmesh.identity import revocation
from hostmesh.identity.authority import Authority
from hostmesh.names import SpiffeId, dns_names_of
from hostmesh.registry.catalog import Catalog, Host, Workload, conflict_of, service_of
from hostmesh.registry.events import (
    FellSilent,
    Offer,
    Published,
    apply,
    changed_services,
    claims_for,
    replay,
    stamp,
)
from hostmesh.wire.controller import WatchEvent
from hostmesh.wire.snapshot import Revoked

log = logging.getLogger(__name__)
_Load = TypeVar("_Load", Offer, Workload)


class Feed:
    """The catalog in force, who is alive, and who watches. ``clock``: monotonic seconds."""

    def __init__(self, config: Config, store: Store, authority: Authority, clock: Callable[[], float]) -> None:
        self._config, self._store, self._authority, self._clock = config, store, authority, clock
        self._revoked, self._revoked_at = store.revoked(ca.seconds()), 0
        self._catalog = self._loaded()
        self._revision = self._base = store.revision()
        self._changed: dict[str, int] = {}
        self._events: dict[int | None, WatchEvent] = {}
        self._heard = dict.fromkeys(self._catalog.hosts, clock())
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def catalog(self) -> Catalog:
        """What is in force."""
        return self._catalog

    @property
    def revoked(self) -> list[Revoked]:
        """What is revoked."""
        return self._revoked

    def publish(
        self, name: str, addresses: tuple[str, ...], wire_port: int, offers: list[Offer], zone: str = ""
    ) -> None:
        """A host's word. The same word again only shows that it is alive."""
        for attempt in range(3):
            self.refresh()
            try:
                self._publish(name, addresses, wire_port, offers, zone)
                break
            except StaleError:
                if attempt == 2:
                    raise
        self._heard[name] = self._clock()

    def _publish(self, name: str, addresses: tuple[str, ...], wire_port: int, offers: list[Offer], zone: str) -> None:
        known = self._catalog.hosts.get(name)
        revision = self._revision + 1
        offers = self._counting(name, offers)
        host = Host(name, addresses, wire_port, stamp(known, offers, revision), revision, zone)
        if known and name not in self._catalog.silent and _same(known, host):
            return
        claims = claims_for(self._catalog, offers)
        self._store.put_word(host, claims)
        self._move_to(apply(replay(self._catalog, claims), Published(host)), revision)

    def refresh(self) -> None:
        """Take over what another process wrote to the store: hosts removed, names released, identities revoked."""
        if self._store.changed_elsewhere():
            before, self._revoked = self._revoked, self._store.revoked(ca.seconds())
            self._move_to(self._loaded(), self._store.revision())
            if self._revoked != before:
                self._revoked_at = self._revision
                for line in revocation.news(before, self._revoked):
                    log.warning("%s", line)
            self._tell()  # watchers who were removed find out

    def _loaded(self) -> Catalog:
        """The store's catalog; what is revoked serves nobody."""
        catalog = self._store.load(self._config.trust_domain, self._config.vip_ranges)
        hosts = {
            name: replace(host, workloads=tuple(self._counting(name, host.workloads)))
            for name, host in catalog.hosts.items()
        }
        return replace(catalog, hosts=hosts)

    def _counting(self, host: str, loads: Iterable[_Load]) -> list[_Load]:
        """What a host runs; what is revoked is not ready."""
        if not self._revoked:
            return list(loads)
        names = dns_names_of(host)

        def stands(load: _Load) -> bool:
            identity = SpiffeId.of_unit(self._config.trust_domain, load.unit)
            return revocation.standing(self._revoked, identity, names) is None

        return [replace(load, ready=load.ready and stands(load)) for load in loads]

    def withdraw_silent(self) -> list[str]:
        """Withdraw the endpoints of hosts not heard of for too long; which ones."""
        limit = self._clock() - self._config.silence
        names = [
            name
            for name, host in self._catalog.hosts.items()
            if host.workloads and name not in self._catalog.silent and self._heard.get(name, limit) < limit
        ]
        if names:
            revision = self._store.put_silence(names)
            self.refresh()
            self._move_to(replay(self._catalog, [FellSilent(name, revision) for name in names]), revision)
            log.warning("hosts silent for %.0f s, endpoints withdrawn: %s", self._config.silence, ", ".join(names))
        return names

    def _move_to(self, catalog: Catalog, revision: int) -> None:
        names = changed_services(self._catalog, catalog)
        self._catalog, self._revision = catalog, revision
        self._events.clear()
        self._heard = {name: self._heard.get(name, self._clock()) for name in catalog.hosts}
        for name in names:
            self._changed[name] = revision
            conflict = conflict_of(catalog, name)
            if conflict:
                others = ", ".join(conflict.others)
                log.warning("service %s: [traffic] of %s is in force, %s differ", name, conflict.in_force, others)
        if names:
            self._tell()

    def _tell(self) -> None:
        self._wake.set()
        self._wake = asyncio.Event()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._tell()

    async def watch(self, revision: int, admitted: Callable[[], None]) -> AsyncIterator[WatchEvent]:
        """Events from after ``revision``. The first comes at once, even when it is empty: it says "you are up to date".

        ``admitted`` raises when the watcher may not listen any more; asked before every event.
        """
        full = not self._base <= revision <= self._revision
        first = True
        while not self._closed:
            admitted()
            wake, now = self._wake, self._revision  # before the yield: a change during it must not be missed
            event = self._event_after(None if full else revision)
            if first or event.services or event.removed or self._revoked_at > revision:
                yield event
            revision, full, first = now, False, False
            if wake is self._wake:
                await wake.wait()

    def _event_after(self, revision: int | None) -> WatchEvent:
        """What happened since; None: everything. Watchers mostly stand at one revision: it is made once for all."""
        if revision not in self._events:
            if revision is None:
                names = {load.service for host in self._catalog.hosts.values() for load in host.workloads}
            else:
                names = {name for name, at in self._changed.items() if at > revision}
            self._events[revision] = self._event(sorted(names), full=revision is None)
        return self._events[revision]

    def _event(self, names: list[str], *, full: bool) -> WatchEvent:
        found = {name: service_of(self._catalog, name) for name in names}
        conflicts = [conflict for name in names if (conflict := conflict_of(self._catalog, name))]
        bundle = [ca.base64_der(root) for root in self._authority.trust_bundle]
        return WatchEvent(
            revision=self._revision,
            full=full,
            services=[service for service in found.values() if service],
            removed=[] if full else [name for name, service in found.items() if not service],
            trust_bundle=bundle,
            vip_ranges=list(self._config.vip_ranges),
            conflicts={c.service: [c.in_force, *c.others] for c in conflicts},
            revoked=self._revoked,
        )


def _same(known: Host, host: Host) -> bool:
    return replace(known, revision=host.revision) == host
