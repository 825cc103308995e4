"""Which of two endpoints, on two real hosts, gets a request: counted at their answers."""

import pytest

from hostmesh.policy.hostfile import PLACE
from tests.lab.waiting import wait_until
from tests.mesh.twins import Twins

pytestmark = pytest.mark.lab
BY_USER = 'balance = { by = "consistent-hash", on = "header:x-user" }\n'


def test_who_joins_begins_slowly(pair: Twins) -> None:
    pair.treat('balance = "round-robin"\nslow_start = "5s"\n')
    with pair.only(pair.w.h1):
        assert pair.ask(50).answers == {"200 h1": 50}
    young = pair.ask(300, pace=600)
    assert 0 < young.of("h2") < 90, young.answers

    def whole() -> bool:
        return pair.ask(200).of("h2") > 80

    wait_until(whole, "h2 has its whole share", 8.0, 0.5)


def test_one_after_the_other(pair: Twins) -> None:
    pair.treat('balance = "round-robin"\n')
    asked = pair.ask(400)
    assert asked.answers == {"200 h1": 200, "200 h2": 200}


def test_the_one_with_fewer_requests(pair: Twins) -> None:
    pair.treat('balance = "least-request"\n')
    asked = pair.ask(400)
    assert min(asked.of("h1"), asked.of("h2")) > 120, asked.answers
    pair.does(pair.w.h2, "after 0.2")
    try:
        asked = pair.ask(400, pace=200, connections=20)
    finally:
        pair.does(pair.w.h2, "200")
    assert asked.of("h1") > 4 * asked.of("h2") > 0, asked.answers


@pytest.mark.parametrize("slow", ["h1", "h2"])
def test_the_quicker_one(pair: Twins, slow: str) -> None:
    """One caller, one request at a time: who is slow has as few in flight as the other, and is told by its time."""
    pair.treat(f'balance = "ewma"\nslow_start = "{slow[1]}ms"\n')
    pair.does(pair.w.lab[slow], "after 0.1")
    try:
        asked = pair.ask(300, connections=1)
    finally:
        pair.does(pair.w.lab[slow], "200")
    assert 0 < asked.of(slow) < 15, asked.answers
    assert asked.all == 300


def test_the_same_key_the_same_endpoint(pair: Twins) -> None:
    pair.treat(BY_USER)
    before = pair.ask(600, keys=100).by_key
    assert len(before) == 100
    assert all(len(bodies) == 1 for bodies in before.values())
    of_h1 = {key for key, bodies in before.items() if "h1" in bodies}
    assert 25 < len(of_h1) < 75, "spread"
    with pair.only(pair.w.h1):
        during = pair.ask(600, keys=100).by_key
    moved = {key for key in before if during[key].keys() != before[key].keys()}
    assert moved == before.keys() - of_h1, "what was h2's, and nothing else: less than two in two"
    after = pair.ask(600, keys=100).by_key
    assert {key: set(bodies) for key, bodies in after.items()} == {key: set(bodies) for key, bodies in before.items()}


def test_one_key_is_too_much_for_one_endpoint(pair: Twins) -> None:
    hosts = (pair.w.h1, pair.w.h2)
    for host in hosts:
        pair.does(host, "after 0.05")
    try:
        pair.treat(BY_USER)
        asked = pair.ask(200, connections=10, keys=1)
        assert len(asked.answers) == 1, "all of it without a bound"
        pair.treat('balance = { by = "consistent-hash", on = "header:x-user", bound = 1.25 }\n')
        asked = pair.ask(200, connections=10, keys=1)
    finally:
        for host in hosts:
            pair.does(host, "200")
    # Of ten in flight at most seven are one endpoint's: ceil(1.25 * 10 / 2).
    assert min(asked.answers.values()) / asked.all > 0.25, asked.answers


def test_near_first(pair: Twins) -> None:
    pair.treat('prefer = "near"\n')
    assert pair.ask(200).answers == {"200 h1": 200}
    with pair.only(pair.w.h2):
        assert pair.ask(200).answers == {"200 h2": 200}
    assert pair.ask(200).answers == {"200 h1": 200}


def test_a_zone_is_told_to_the_mesh(pair: Twins) -> None:
    h2 = pair.w.h2
    before = h2.read(PLACE)
    try:
        h2.write(PLACE, f'zone = "rack-7"\n{before}')
        h2.systemctl("restart", "hostmeshd")
        wait_until(lambda: zones(pair) == {"h1": "", "h2": "rack-7"}, "h1 knows the zone of h2", 15.0, 0.1)
    finally:
        h2.write(PLACE, before)
        h2.systemctl("restart", "hostmeshd")
    wait_until(lambda: zones(pair) == {"h1": "", "h2": ""}, "h1 knows that there is none", 15.0, 0.1)


def zones(pair: Twins) -> dict[str, str]:
    """Of the endpoints, as the caller's proxy knows them."""
    return {endpoint["host"]: endpoint["zone"] for endpoint in pair.w.services(pair.w.h1)["twin"]["endpoints"]}
