"""An endpoint that only fails is left alone, and comes back: counted at the endpoint."""

import pytest

from tests.lab.waiting import wait_until
from tests.mesh.told import total
from tests.mesh.twins import Twins

pytestmark = pytest.mark.lab


@pytest.fixture(autouse=True)
def nobody_ejected(pair: Twins) -> None:
    """Every test begins with two endpoints that have just answered."""

    def both() -> bool:
        return pair.ask(20).of("200") == 20 and total(pair.w.h1, "hostmesh_endpoints_ejected", service="twin") == 0

    wait_until(both, "both endpoints answer", 10.0, 0.2)


def test_it_gets_nothing_for_its_time(pair: Twins) -> None:
    h1, h2 = pair.w.h1, pair.w.h2
    pair.treat('balance = "round-robin"\nbreaker = { consecutive_errors = 5, eject = "3s" }\n')
    cursor, before = h1.journal_cursor(), pair.requests(h2)
    pair.does(h2, "500")
    try:
        asked = pair.ask(300, pace=200, connections=1)
        assert asked.answers == {"500 h2": 5, "200 h1": 295}, "five errors, and no more"
        assert pair.requests(h2) - before == 5
        assert total(h1, "hostmesh_endpoints_ejected", service="twin") == 1
        pair.told(cursor, "ejected for 3s: twin.service on h2, after 5 errors")
    finally:
        pair.does(h2, "200")
    pair.told(cursor, "back from its ejection: twin.service on h2")
    assert total(h1, "hostmesh_endpoints_ejected", service="twin") == 0
    assert pair.ask(100).answers == {"200 h1": 50, "200 h2": 50}
    assert total(h1, "hostmesh_ejections_total", service="twin") == 1


def test_never_all_of_them_and_longer_each_time(pair: Twins) -> None:
    h1, both = pair.w.h1, (pair.w.h1, pair.w.h2)
    pair.treat('balance = "round-robin"\nbreaker = { consecutive_errors = 3, eject = "1s" }\n')
    cursor = h1.journal_cursor()
    for host in both:
        pair.does(host, "500")
    try:
        asked = pair.ask(200, connections=1)
        assert asked.of("500") == 200, "half of two may be ejected: somebody answers"
        assert total(h1, "hostmesh_endpoints_ejected", service="twin") == 1
        pair.told(cursor, "back from its ejection")
        pair.does(pair.w.h2, "200")  # else the two take turns, and each has stood its trial when its turn comes

        def again() -> bool:
            pair.ask(20, connections=1)
            lines = h1.journal(unit="guest.service", after=cursor, HOSTMESH_KIND="breaker")
            return any("ejected for 2s" in line["MESSAGE"] for line in lines)

        wait_until(again, "the same one is ejected for longer", 10.0, 0.1)
    finally:
        for host in both:
            pair.does(host, "200")


def test_all_of_them_where_the_policy_says_so(pair: Twins) -> None:
    both = (pair.w.h1, pair.w.h2)
    pair.treat('breaker = { consecutive_errors = 3, eject = "2s", max_ejected = 1 }\n')
    for host in both:
        pair.does(host, "500")
    try:
        asked = pair.ask(200, connections=1)
        assert (asked.of("500"), asked.of("ejected")) == (6, 194), asked.answers
    finally:
        for host in both:
            pair.does(host, "200")
    wait_until(lambda: pair.ask(10).of("200") == 10, "both are back", 8.0, 0.2)
