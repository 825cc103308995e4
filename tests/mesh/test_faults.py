"""Trouble on purpose, through two real hosts: so many are held back, so many answered with an error, and told so."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.lab.waiting import wait_until
from tests.mesh.shelf import Shelf, shelf
from tests.mesh.world import World

pytestmark = pytest.mark.lab

ROUTES = """
[[traffic.route]]
name  = "half"
match = { path = "/half" }
fault = { abort = 503, abort_percent = 50 }

[[traffic.route]]
name  = "late"
match = { path = "/late" }
fault = { delay = "400ms", delay_percent = 50 }

[[traffic.route]]
name    = "too-late"
match   = { path = "/too-late" }
timeout = "300ms"
fault   = { delay = "30s" }
"""


@pytest.fixture(scope="module")
def versions(mesh: World) -> Iterator[Shelf]:
    with shelf(mesh) as made, made.routes(ROUTES):
        yield made


def test_half_are_answered_with_an_error(versions: Shelf) -> None:
    answers = versions.ask([("GET", "/half", {})] * 1000, 4)
    counts = Counter((answer.status, answer.headers.get("x-hostmesh-error", "")) for answer in answers)
    assert set(counts) == {(200, ""), (503, "fault")}
    assert 410 <= counts[503, "fault"] <= 590  # 500, six sigma


def test_half_are_held_back_and_told(versions: Shelf) -> None:
    with versions.recorded() as cursor:
        answers = versions.ask([("GET", "/late", {})] * 60, 6)

        def told() -> list[dict[str, str]]:
            versions.ask([("GET", "/late", {})] * 4, 4)
            return versions.world.h1.journal(after=cursor, HOSTMESH_UNIT="shop.service", HOSTMESH_FLAG="fault")

        # A unit has 200 lines of a kind in ten seconds: what was asked before may have used them up.
        lines = wait_until(told, "a line says so", 15.0, 0.2)
    late = [answer for answer in answers if answer.seconds >= 0.4]
    assert {answer.status for answer in answers} == {200}
    assert 10 <= len(late) <= 50
    assert sorted(answer.seconds for answer in answers)[0] < 0.3, "the others are not"
    assert {line["HOSTMESH_ROUTE"] for line in lines} == {"late"}


def test_what_is_held_back_is_within_its_time(versions: Shelf) -> None:
    [answer] = versions.ask([("GET", "/too-late", {})])
    assert (answer.status, answer.headers["x-hostmesh-error"]) == (504, "timeout")
    assert 0.3 <= answer.seconds < 5


def test_what_does_not_fit_is_let_alone(versions: Shelf) -> None:
    answers = versions.ask([("GET", "/whole", {})] * 50)
    assert {(answer.status, answer.by) for answer in answers} == {(200, "shelf")}
