"""The registry: order does not matter, a VIP is for ever, the youngest traffic policy is in force."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.names import UnitName
from hostmesh.registry.catalog import (
    Catalog,
    Claim,
    Host,
    RangeError,
    Workload,
    allocate,
    conflict_of,
    service_of,
    vips_of,
    where_published,
)
from hostmesh.registry.events import (
    MOST_NAMES,
    Claimed,
    Event,
    FellSilent,
    Offer,
    Published,
    Removed,
    admit,
    apply,
    changed_services,
    claims_for,
    replay,
    stamp,
)
from hostmesh.wire.snapshot import Service, Traffic

RANGES = ("240.240.0.0/16", "fd00:240::/112")
PLAIN = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="")
EMPTY = Catalog("mesh.test", RANGES)


def offer(unit: str, service: str, *ports: tuple[int, str], traffic: Traffic = PLAIN, ready: bool = True) -> Offer:
    return Offer(UnitName(unit), service, ports, traffic, ready)


def host(name: str, revision: int, *offers: Offer, known: Host | None = None, address: str = "198.18.0.1") -> Host:
    return Host(name, (address,), 15008, stamp(known, offers, revision), revision)


def publish(catalog: Catalog, revision: int, name: str, *offers: Offer) -> Catalog:
    word = host(name, revision, *offers, known=catalog.hosts.get(name))
    return apply(replay(catalog, claims_for(catalog, offers)), Published(word))


def test_a_service_has_its_endpoints_vips_and_ports() -> None:
    catalog = publish(EMPTY, 1, "h2", offer("inventory.service", "inventory", (8080, "http"), (5432, "tcp")))
    service = service_of(catalog, "inventory")
    assert service is not None
    assert [(p.port, p.target, p.protocol) for p in service.ports] == [
        (80, 8080, "http"),
        (5432, 5432, "tcp"),
        (8080, 8080, "http"),
    ]
    [endpoint] = service.endpoints
    assert (endpoint.host, endpoint.spiffe_id) == ("h2", "spiffe://mesh.test/unit/inventory")
    assert endpoint.sni == "inventory.unit.mesh.test"
    for vip, network in zip(service.vips, RANGES, strict=True):
        assert ip_address(vip) in ip_network(network)
    assert int(ip_address(service.vips[0])) & 0xFFFF == int(ip_address(service.vips[1])) & 0xFFFF


def test_port_80_stays_itself_when_declared() -> None:
    catalog = publish(EMPTY, 1, "h1", offer("nginx.service", "nginx", (8080, "http"), (80, "tcp")))
    service = service_of(catalog, "nginx")
    assert service is not None
    assert [(p.port, p.target) for p in service.ports] == [(80, 80), (8080, 8080)]


def test_no_http_port_no_80() -> None:
    catalog = publish(EMPTY, 1, "h1", offer("redis.service", "redis", (6379, "tcp")))
    service = service_of(catalog, "redis")
    assert service is not None
    assert [p.port for p in service.ports] == [6379]


def test_last_change_of_traffic_is_in_force_and_the_conflict_shows() -> None:
    slow = replace_traffic(10_000, "inventory.service.toml:12")
    fast = replace_traffic(2_000, "inventory.service.toml:14")
    catalog = publish(EMPTY, 1, "h1", offer("inventory.service", "inventory", (80, "http"), traffic=slow))
    catalog = publish(catalog, 2, "h2", offer("inventory.service", "inventory", (80, "http"), traffic=fast))
    service = service_of(catalog, "inventory")
    assert service is not None
    assert service.traffic.timeout_ms == 2_000
    conflict = conflict_of(catalog, "inventory")
    assert conflict is not None
    assert conflict.in_force == "h2 inventory.service.toml:14"
    assert conflict.others == ("h1 inventory.service.toml:12",)
    # to prefer what is near is a difference as well
    near = msgspec.structs.replace(fast, prefer="near")
    differs = publish(catalog, 3, "h1", offer("inventory.service", "inventory", (80, "http"), traffic=near))
    assert conflict_of(differs, "inventory") is not None
    # h1 says the same again: no change of h1's, so h2 stays in force
    again = publish(catalog, 3, "h1", offer("inventory.service", "inventory", (80, "http"), traffic=slow))
    service = service_of(again, "inventory")
    assert service is not None
    assert service.traffic.timeout_ms == 2_000
    # h2 agrees: no conflict
    agreed = publish(again, 4, "h2", offer("inventory.service", "inventory", (80, "http"), traffic=slow))
    assert conflict_of(agreed, "inventory") is None


def replace_traffic(timeout: int, rule: str) -> Traffic:
    return Traffic(timeout_ms=timeout, retries=None, balance="least-request", rule=rule)


def test_silence_withdraws_endpoints_and_a_new_word_brings_them_back() -> None:
    up = publish(EMPTY, 1, "h1", offer("web.service", "web", (80, "http")))
    silent = apply(up, FellSilent("h1", 2))
    assert service_of(silent, "web") == without_endpoints(up, "web")
    assert changed_services(up, silent) == {"web"}
    back = publish(silent, 3, "h1", offer("web.service", "web", (80, "http")))
    assert service_of(back, "web") == service_of(up, "web")


def without_endpoints(catalog: Catalog, name: str) -> Service:
    service = service_of(catalog, name)
    assert service is not None
    assert service.endpoints
    assert service.vips
    return msgspec.structs.replace(service, endpoints=[])


def test_a_service_outlives_the_units_that_serve_it() -> None:
    slow = replace_traffic(10_000, "web.service.toml:12")
    words = [offer("web.service", "web", (8080, "http"), traffic=slow, ready=ready) for ready in (True, False)]
    up = publish(EMPTY, 1, "h1", words[0])
    stopped = publish(up, 2, "h1", words[1])
    assert service_of(stopped, "web") == without_endpoints(up, "web")
    assert changed_services(up, stopped) == {"web"}
    assert stopped.hosts["h1"].workloads[0].since == 1, "to stop changes nothing that callers follow"
    silent = apply(stopped, FellSilent("h1", 3))
    assert service_of(silent, "web") == service_of(stopped, "web")
    assert changed_services(stopped, silent) == frozenset()
    assert service_of(publish(silent, 4, "h1", words[0]), "web") == service_of(up, "web")
    undeclared = publish(silent, 4, "h1")
    assert service_of(undeclared, "web") is None
    assert changed_services(silent, undeclared) == {"web"}
    assert service_of(apply(silent, Removed("h1", 4)), "web") is None


def test_a_service_that_never_ran_has_its_vip() -> None:
    first = publish(EMPTY, 1, "h1", offer("web.service", "web", (8080, "http"), ready=False))
    service = service_of(first, "web")
    assert service is not None
    assert (service.endpoints, [p.port for p in service.ports]) == ([], [80, 8080])
    up = publish(first, 2, "h1", offer("web.service", "web", (8080, "http")))
    assert without_endpoints(up, "web") == service


def test_only_the_ready_and_heard_of_are_endpoints_and_all_declare() -> None:
    fast = replace_traffic(2_000, "web.service.toml:3")
    catalog = publish(EMPTY, 1, "h1", offer("web.service", "web", (80, "http")))
    catalog = publish(catalog, 2, "h2", offer("web.service", "web", (80, "http"), (81, "tcp")))
    catalog = publish(catalog, 3, "h3", offer("web.service", "web", (82, "tcp"), traffic=fast, ready=False))
    catalog = apply(catalog, FellSilent("h2", 4))
    service = service_of(catalog, "web")
    assert service is not None
    assert [endpoint.host for endpoint in service.endpoints] == ["h1"]
    assert [port.port for port in service.ports] == [80, 81, 82]
    assert service.traffic == fast, "the youngest [traffic] is in force, whether its unit runs or not"
    conflict = conflict_of(catalog, "web")
    assert conflict is not None
    assert conflict.in_force == "h3 web.service.toml:3"


def test_a_foreign_unit_does_not_take_a_name() -> None:
    catalog = publish(EMPTY, 1, "h1", offer("web@1.service", "web", (80, "http")))
    own, evil = offer("web@2.service", "web", (80, "http")), offer("evil.service", "web", (80, "http"))
    assert admit(catalog, [evil, own]) == ([own], {UnitName("evil.service"): "web"})
    released = replace(catalog, claims={"web": replace(catalog.claims["web"], owner="")})
    assert admit(released, [evil]) == ([evil], {})
    taken = replay(released, claims_for(released, [evil]))
    assert taken.claims["web"] == Claim(catalog.claims["web"].index, "evil")


def test_a_new_name_has_one_owner_within_one_word() -> None:
    a, b = offer("a.service", "web", (80, "http")), offer("b.service", "web", (81, "http"))
    assert admit(EMPTY, [b, a]) == ([a], {UnitName("b.service"): "a"})


def test_one_owner_does_not_use_up_the_names() -> None:
    """A stolen host publishes its unit under one name after the other: each stays claimed."""
    claims = {f"s{number}": Claim(number + 1, "evil") for number in range(MOST_NAMES)}
    catalog = replace(EMPTY, claims=claims)
    with pytest.raises(RangeError, match="evil has 1024 service names"):
        claims_for(catalog, [offer("evil@7.service", "one-more", (80, "http"))])
    assert claims_for(catalog, [offer("evil.service", "s5", (80, "http"))]) == [], "its own name again"
    assert len(claims_for(catalog, [offer("good.service", "good", (80, "http"))])) == 1


def test_changes_name_only_what_changed() -> None:
    one = publish(EMPTY, 1, "h1", offer("a.service", "a", (80, "http")), offer("b.service", "b", (81, "tcp")))
    two = publish(one, 2, "h1", offer("a.service", "a", (80, "http")), offer("b.service", "b", (82, "tcp")))
    assert changed_services(one, two) == {"b"}
    assert changed_services(two, publish(two, 3, "h1", offer("a.service", "a", (80, "http")))) == {"b"}


def test_vips_run_out_with_a_word() -> None:
    claims = {f"s{i}": Claim(i + 1, f"s{i}") for i in range(6)}
    with pytest.raises(RangeError, match="no VIP is left for late"):
        allocate(claims, "late", "late", 6)


names = st.sampled_from([f"svc{i}" for i in range(30)])


@given(st.lists(names, min_size=1, max_size=60))
def test_vips_never_change_and_are_never_shared(order: list[str]) -> None:
    catalog = Catalog("mesh.test", ("240.240.0.0/26", "fd00:240::/112"))
    seen: dict[str, list[str]] = {}
    for revision, name in enumerate(order, 1):
        catalog = publish(catalog, revision, "h1", offer(f"{name}.service", name, (80, "http")))
        vips = vips_of(catalog.vip_ranges, catalog.claims[name].index)
        assert seen.setdefault(name, vips) == vips
        service = service_of(catalog, name)
        assert service is not None
        assert service.vips == vips
    given_out = [vip for vips in seen.values() for vip in vips]
    assert len(given_out) == len(set(given_out))


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = [Claimed(service, Claim(index + 1, service)) for index, service in enumerate(("a", "b"))]
    for revision in range(1, draw(st.integers(1, 10)) + 1):
        name = draw(st.sampled_from(["h1", "h2", "h3"]))
        kind = draw(st.sampled_from(["publish", "publish", "silent", "remove"]))
        if kind == "publish":
            service = draw(st.sampled_from(["a", "b"]))
            port = draw(st.sampled_from([80, 8080]))
            said = offer(f"{service}.service", service, (port, "http"), ready=draw(st.booleans()))
            events.append(Published(host(name, revision, said)))
        elif kind == "silent":
            events.append(FellSilent(name, revision))
        else:
            events.append(Removed(name, revision))
    return events


@given(histories(), st.randoms(use_true_random=False), st.booleans())
def test_order_and_repetition_do_not_matter(events: list[Event], random: object, twice: bool) -> None:
    shuffled = list(events) * (2 if twice else 1)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    straight, mixed = replay(EMPTY, events), replay(EMPTY, shuffled)
    assert straight == mixed
    assert straight.where == where_published(straight.hosts.values())
    assert [service_of(straight, name) for name in "ab"] == [service_of(mixed, name) for name in "ab"]


def test_an_old_word_does_not_bring_a_removed_host_back() -> None:
    old = Published(host("h1", 1, offer("web.service", "web", (80, "http"))))
    catalog = replay(replace(EMPTY, claims={"web": Claim(1, "web")}), [Removed("h1", 2), old])
    assert service_of(catalog, "web") is None


def test_workloads_keep_their_since() -> None:
    first = stamp(None, [offer("a.service", "a", (80, "http"))], 1)
    known = Host("h", (), 15008, first, 1)
    stopped = offer("a.service", "a", (80, "http"), ready=False)
    both = stamp(known, [stopped, offer("b.service", "b", (81, "tcp"))], 2)
    assert both == (
        Workload(UnitName("a.service"), "a", ((80, "http"),), PLAIN, 1, ready=False),
        Workload(UnitName("b.service"), "b", ((81, "tcp"),), PLAIN, 2, ready=True),
    )
