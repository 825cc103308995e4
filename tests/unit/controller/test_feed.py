"""The feed by itself: nothing is missed, whatever happens while a watcher is busy with the event before."""

import asyncio
from contextlib import closing

from hostmesh.controller import ca
from hostmesh.controller.feed import Feed
from hostmesh.controller.store import Store
from hostmesh.names import UnitName
from hostmesh.registry.events import Offer
from hostmesh.wire.snapshot import Traffic
from tests.unit.controller.conftest import DEADLINE, Mesh

PLAIN = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="")


def offer(name: str, port: int, *, ready: bool = True) -> Offer:
    return Offer(UnitName(f"{name}.service"), name, ((port, "http"),), PLAIN, ready)


def test_a_change_while_the_watcher_is_busy_is_not_missed(mesh: Mesh) -> None:
    mesh.join("h1")
    mesh.kill()
    with closing(Store(mesh.config.state / "controller.db")) as store:
        authority = ca.load(mesh.config.state, store, mesh.config.trust_domain)
        feed = Feed(mesh.config, store, authority, lambda: 0.0)

        async def scenario() -> None:
            events = feed.watch(0, lambda: None)
            assert (await anext(events)).full
            for port in range(8000, 8005):  # the watcher stands in its yield, and these are all one event
                feed.publish("h1", ("198.18.0.1",), 15008, [offer("web", port), offer(f"s{port}", port)])
            event = await asyncio.wait_for(anext(events), DEADLINE)
            assert event.revision == store.revision()
            assert [(s.name, s.ports[-1].port) for s in event.services] == [("s8004", 8004), ("web", 8004)]
            assert event.removed == ["s8000", "s8001", "s8002", "s8003"]
            assert store.load(mesh.config.trust_domain, mesh.config.vip_ranges) == feed.catalog
            feed.close()
            assert [event async for event in events] == []

        asyncio.run(scenario())


def test_silence_counts_from_the_last_word(mesh: Mesh) -> None:
    mesh.join("h1")
    mesh.kill()
    now = 1000.0
    with closing(Store(mesh.config.state / "controller.db")) as store:
        authority = ca.load(mesh.config.state, store, mesh.config.trust_domain)
        feed = Feed(mesh.config, store, authority, lambda: now)
        feed.publish("h1", ("198.18.0.1",), 15008, [offer("web", 80)])
        now += mesh.config.silence - 1
        assert feed.withdraw_silent() == []
        feed.publish("h1", ("198.18.0.1",), 15008, [offer("web", 80)])
        now += mesh.config.silence - 1
        assert feed.withdraw_silent() == []
        now += 2
        assert feed.withdraw_silent() == ["h1"]
        assert feed.withdraw_silent() == []
