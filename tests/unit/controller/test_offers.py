"""What a host may say: nothing that another host would refuse, and no address of others."""

import asyncio

import msgspec
import pytest

from hostmesh.agent.controller_client import ControllerError
from hostmesh.controller import admin
from hostmesh.controller.offers import offer, own_addresses
from hostmesh.names import BadName
from hostmesh.registry.catalog import Catalog, Host
from hostmesh.wire.controller import PublishRequest, Workload
from hostmesh.wire.snapshot import Breaker, ConsistentHash, Hedge, Mirror, Retries, Route, Share, Traffic
from tests.unit.controller.conftest import Mesh, next_event

PLAIN = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="web.service.toml:3")
RETRIES = Retries(attempts=3, per_try_timeout_ms=2000, on=["5xx"], budget=0.2, non_idempotent=False)
WEB = Workload("web.service", "web", [(80, "http")], PLAIN, True)
CATALOG = Catalog(
    "mesh.test",
    ("240.240.0.0/16", "fd00:240::/112"),
    hosts={
        "h1": Host("h1", ("198.18.0.1", "2001:2::1"), 15008, (), 1),
        "h2": Host("h2", ("198.18.0.2",), 15008, (), 2),
    },
)


def test_what_a_policy_says_is_taken() -> None:
    assert offer(WEB).ports == ((80, "http"),)
    hashed = {"balance": "consistent-hash", "hash": ConsistentHash("cookie:id", 1.25), "prefer": "near"}
    limited = {"breaker": Breaker(100, 256, 1000, 10, 5, 30_000, 0.5, "web.service.toml:5")}
    for changes in ({"retries": RETRIES, "timeout_ms": 86_400_000}, hashed, limited):
        offer(msgspec.structs.replace(WEB, traffic=msgspec.structs.replace(PLAIN, **changes)))


@pytest.mark.parametrize(
    ("changes", "retries"),
    [
        ({"balance": "evil"}, {}),
        ({"balance": "consistent-hash"}, {}),
        ({"balance": "ewma", "hash": ConsistentHash("source", 0)}, {}),
        ({"balance": "consistent-hash", "hash": ConsistentHash("path", 0)}, {}),
        ({"balance": "consistent-hash", "hash": ConsistentHash("source", 0.5)}, {}),
        ({"connect_timeout_ms": -1}, {}),
        ({"hedge": Hedge(after_ms=0, attempts=2)}, {}),
        ({"hedge": Hedge(after_ms=100, attempts=99)}, {}),
        ({"breaker": Breaker(-1, 0, 0, 0, 0, 1, 0.5, "")}, {}),
        ({"breaker": Breaker(0, 0, 0, 0, 5, 0, 0.5, "")}, {}),
        ({"breaker": Breaker(0, 0, 0, 0, 5, 1, 1.5, "")}, {}),
        ({"breaker": Breaker(0, 0, 0, 0, 5, 1, 0.5, "a\nb")}, {}),
        ({"prefer": "far"}, {}),
        ({"slow_start_ms": -1}, {}),
        ({"panic": 2.0}, {}),
        ({"timeout_ms": -1}, {}),
        ({"timeout_ms": 2**63}, {}),
        ({"rule": "x" * 600}, {}),
        ({"rule": "a\nb"}, {}),
        ({}, {"attempts": 0}),
        ({}, {"attempts": 11}),
        ({}, {"budget": 1.1}),
        ({}, {"budget": float("nan")}),
        ({}, {"per_try_timeout_ms": -1}),
        ({}, {"on": ["whenever"]}),
        ({}, {"backoff_ms": 20, "max_backoff_ms": 10}),
    ],
)
def test_a_word_that_a_proxy_would_refuse_is_refused(changes: dict[str, object], retries: dict[str, object]) -> None:
    """One such word in the catalog, and no host takes any configuration any more."""
    traffic = msgspec.structs.replace(PLAIN, **changes)
    if retries:
        traffic = msgspec.structs.replace(traffic, retries=msgspec.structs.replace(RETRIES, **retries))
    with pytest.raises(BadName):
        offer(msgspec.structs.replace(WEB, traffic=traffic))


def test_ports_are_checked_and_few() -> None:
    for ports in ([(0, "tcp")], [(80, "smtp")], [(number, "tcp") for number in range(1, 300)]):
        with pytest.raises(BadName):
            offer(msgspec.structs.replace(WEB, ports=ports))


def test_addresses_of_others_and_vips_are_nobodys_to_publish() -> None:
    said = ("198.18.0.3", "198.18.0.2", "240.240.0.9", "fd00:240::9", "2001:2::3", "198.18.0.3")
    assert own_addresses(CATALOG, "h3", said) == (
        ("198.18.0.3", "2001:2::3"),
        ("198.18.0.2", "240.240.0.9", "fd00:240::9"),
    )
    assert own_addresses(CATALOG, "h2", ("198.18.0.2",)) == (("198.18.0.2",), ())
    with pytest.raises(BadName):
        own_addresses(CATALOG, "h3", ("fe80::1",))


def test_the_address_of_a_silent_host_can_move() -> None:
    silent = Catalog(CATALOG.trust_domain, CATALOG.vip_ranges, hosts=CATALOG.hosts, silent={"h2": 3})
    assert own_addresses(silent, "h3", ("198.18.0.2",)) == (("198.18.0.2",), ())


def test_a_stolen_host_cannot_stop_or_take_the_others(mesh: Mesh) -> None:
    """The same over TLS: the bad workload and the foreign address are left out, the rest is published."""
    mesh.join("h1", "web")
    mesh.join("h2", "evil", "fine")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        await h1.publish(PublishRequest(["198.18.0.1"], 15008, [WEB], "a"))
        evil = Workload("evil.service", "evil", [(80, "http")], msgspec.structs.replace(PLAIN, balance="evil"), True)
        fine = Workload("fine.service", "fine", [(80, "http")], PLAIN, True)
        reply = await h2.publish(PublishRequest(["198.18.0.2", "198.18.0.1"], 15008, [evil, fine, fine]))
        assert set(reply.refused) == {"evil.service", "fine.service"}
        event = await next_event(h1.watch())
        found = {service.name: service.endpoints[0].addresses for service in event.services}
        assert found == {"web": ["198.18.0.1"], "fine": ["198.18.0.2"]}
        zones = {service.name: service.endpoints[0].zone for service in event.services}
        assert zones == {"web": "a", "fine": ""}
        with pytest.raises(ControllerError, match="is not a zone"):
            await h2.publish(PublishRequest(["198.18.0.2"], 15008, [], "Rack 1"))
        with pytest.raises(ControllerError, match="is not an address"):
            await h2.publish(PublishRequest(["everywhere"], 15008, []))
        await h1.close()
        await h2.close()

    asyncio.run(scenario())


def test_a_stolen_host_cannot_send_callers_of_its_service_to_others(mesh: Mesh) -> None:
    """They would go there with their own rights: its routes are left out until it may run the other's unit."""
    mesh.join("h1", "payments")
    mesh.join("h2", "web")
    routes = [
        Route("v2", "web.service.toml:9", to=[Share("web-v2", 1), Share("web", 9)]),
        Route("evil", "web.service.toml:12", mirror=Mirror("payments", 100, 64)),
    ]
    load = msgspec.structs.replace(WEB, traffic=msgspec.structs.replace(PLAIN, routes=routes))

    payments = msgspec.structs.replace(WEB, unit="payments.service", service="payments")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        await h1.publish(PublishRequest(["198.18.0.1"], 15008, [payments]))
        reply = await h2.publish(PublishRequest(["198.18.0.2"], 15008, [load]))
        assert reply.refused == {}
        assert "web.service.toml:12 leads to payments, which belongs to payments" in reply.unrouted["web.service"]
        event = await next_event(h2.watch())
        [web] = [service for service in event.services if service.name == "web"]
        assert (web.traffic.routes, len(web.endpoints)) == ([], 1), "the service itself stands"
        admin.grant("h2", ("payments",), config_path=mesh.path)
        reply = await h2.publish(PublishRequest(["198.18.0.2"], 15008, [load]))
        assert reply.unrouted == {}
        await h1.close()
        await h2.close()

    asyncio.run(scenario())
