"""What is near is called first, by the zones of four real hosts: counted at the answers.

h1, h2 and h3 are in one zone and h4 is in another; each has an endpoint and may call. h2 has the controller.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from hostmesh.policy.hostfile import PLACE
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.told import total
from tests.mesh.twins import Twins, twins
from tests.mesh.world import World, enrol

pytestmark = pytest.mark.lab

ZONES = {"h1": "hall-a", "h2": "hall-a", "h3": "hall-a", "h4": "hall-b"}
CALLER = "guest.service"
NEAR = 'balance = "round-robin"\nprefer = "near"\n'
# Who fails once gets nothing for longer than any test takes.
ONCE = 'breaker = { consecutive_errors = 1, eject = "10m", max_ejected = 0.5 }\n'


@pytest.fixture(scope="module")
def near(hostmesh_wheels: Path) -> Iterator[Twins]:
    """All four endpoints."""
    with Lab(tuple(ZONES), layers=[hostmesh_wheels]) as lab:
        w = World(lab)
        enrol(lab, {name: [CALLER] for name in ZONES}, lambda _: None)
        for name, zone in ZONES.items():
            put_in_zone(lab[name], zone)
            w.write_policy(lab[name], CALLER, w.policy(CALLER))
        with twins(w, lab["h3"], lab["h4"]) as made:
            made.treat(NEAR)
            wait_zones(made, ZONES)
            yield made


def put_in_zone(host: Host, zone: str) -> None:
    """As an administrator does."""
    lines = host.read(PLACE).splitlines(keepends=True)
    host.write(PLACE, f'zone = "{zone}"\n{"".join(line for line in lines if not line.startswith("zone"))}')
    host.systemctl("restart", "hostmeshd.service")


def wait_zones(near: Twins, zones: dict[str, str]) -> None:
    """Wait until every host's proxy knows who is where, itself included, and every caller has its identity."""

    def knows(host: Host) -> bool:
        endpoints = near.w.services(host)["twin"]["endpoints"]
        known = {endpoint["host"]: endpoint["zone"] for endpoint in endpoints} == zones
        return known and in_force.snapshot(host)["zone"] == zones[host.name] and CALLER in near.w.serials(host)

    for host in near.hosts:
        wait_until(partial(knows, host), f"{host.name} knows the zones {zones}", 20.0, 0.1)


def ask(near: Twins, caller: Host, requests: int = 120) -> dict[str, int]:
    """How many requests of a host's caller each host answered, none of them with an error, and as many reached it."""
    before = {host.name: near.requests(host) for host in near.running()}
    asked = near.ask(requests, host=caller)
    reached = {host.name: near.requests(host) - before[host.name] for host in near.running()}
    came = {name: count for name, count in reached.items() if count}
    assert asked.answers == {f"200 {name}": count for name, count in came.items()}
    assert asked.all == requests
    return came


def test_this_host_then_its_zone_then_all_and_back(near: Twins) -> None:
    h1, h2, h3, h4 = near.hosts
    for host in near.hosts:
        assert ask(near, host) == {host.name: 120}
    with near.without(h1):
        assert ask(near, h1) == {"h2": 60, "h3": 60}
        assert ask(near, h2) == {"h2": 120}
        with near.without(h2):
            assert ask(near, h1) == ask(near, h2) == {"h3": 120}
            with near.without(h3):
                assert ask(near, h1) == ask(near, h3) == {"h4": 120}
            assert ask(near, h1) == {"h3": 120}
        assert ask(near, h1) == {"h2": 60, "h3": 60}
    assert ask(near, h1) == {"h1": 120}
    with near.without(h4):
        assert ask(near, h4) == {"h1": 40, "h2": 40, "h3": 40}, "nobody else is in its zone"


def test_without_the_word_all_are_the_same(near: Twins) -> None:
    near.treat(NEAR.replace("near", "any"))
    try:
        assert ask(near, near.w.h1) == {"h1": 30, "h2": 30, "h3": 30, "h4": 30}
    finally:
        near.treat(NEAR)


def test_the_capacity_that_is_left(near: Twins) -> None:
    """Who answers one request with an error is ejected: a host has one endpoint to lose, its zone two more."""
    h1, h2, h3, _ = near.hosts
    near.treat(NEAR + ONCE)
    try:
        lose(near, h1)
        assert ask(near, h1) == {"h2": 60, "h3": 60}, "this host has none left, the zone has all"
        assert ask(near, h2) == {"h2": 120}
        assert ask(near, h3) == {"h3": 120}, "each caller's host finds out for itself"
        lose(near, h3)
        came = ask(near, h1, 2000)
    finally:
        near.treat(NEAR)
    assert came.keys() == {"h2", "h4"}
    # 1.4 times the half that is healthy stays: 1400 of 2000, six sigma to each side.
    assert 1277 <= came["h2"] <= 1523, came
    assert ask(near, h1) == {"h1": 120}


def lose(near: Twins, host: Host) -> None:
    """An endpoint answers one request of h1 with an error, and is ejected there."""
    near.does(host, "500")
    try:
        before = total(near.w.h1, "hostmesh_endpoints_ejected", service="twin")
        asked = near.ask(4, connections=1)
    finally:
        near.does(host, "200")
    assert asked.of("500") == 1, asked.answers
    assert total(near.w.h1, "hostmesh_endpoints_ejected", service="twin") == before + 1


def test_a_host_that_moves_is_near_to_others(near: Twins) -> None:
    h1, _, h3, h4 = near.hosts
    put_in_zone(h3, "hall-b")
    try:
        wait_zones(near, {**ZONES, "h3": "hall-b"})
        with near.without(h1):
            assert ask(near, h1) == {"h2": 120}
        with near.without(h3):
            assert ask(near, h3) == {"h4": 120}
        with near.without(h4):
            assert ask(near, h4) == {"h3": 120}
    finally:
        put_in_zone(h3, ZONES["h3"])
        wait_zones(near, ZONES)
    with near.without(h3):
        assert ask(near, h3) == {"h1": 60, "h2": 60}
