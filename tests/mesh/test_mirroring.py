"""Copies for a mirror, through two real hosts: all there, bounded, and a mirror that hangs slows nobody."""

import time
from collections.abc import Iterator

import pytest

from tests.mesh.shelf import Answer, Shelf, shelf
from tests.mesh.told import total, wait_metric
from tests.mesh.world import World

pytestmark = pytest.mark.lab

MIRROR = '[[traffic.route]]\nname = "copied"\nmirror = {{ to = "shelf-v3", percent = {percent}, max_pending = 4 }}\n'
SENT, DROPPED = "hostmesh_proxy_mirrored_total", "hostmesh_proxy_mirror_dropped_total"


@pytest.fixture(scope="module")
def versions(mesh: World) -> Iterator[Shelf]:
    with shelf(mesh) as made:
        yield made


def p99(answers: list[Answer]) -> float:
    assert {(answer.status, answer.by) for answer in answers} == {(200, "shelf")}
    return sorted(answer.seconds for answer in answers)[len(answers) * 99 // 100]


def seen(versions: Shelf) -> int:
    """Requests that the mirror has had."""
    count = '[[traffic.route]]\nmatch = { path = "/count" }\nto = "shelf-v3"\n'
    with versions.routes(count):
        return int(versions.ask([("GET", "/count", {})])[0].seen["seen"])


def test_every_copy_arrives_with_its_body(versions: Shelf) -> None:
    h1, before = versions.world.h1, seen(versions)
    sent = total(h1, SENT)
    with versions.recorded() as cursor, versions.routes(MIRROR.format(percent=100)):
        answers = versions.ask([("POST", "/copied", {}, "x" * 2000)] * 20)
        assert {(answer.status, answer.by, len(answer.seen["body"])) for answer in answers} == {(200, "shelf", 2000)}
        wait_metric(h1, SENT, sent + 20)
        lines = versions.told(cursor, HOSTMESH_FLAG="mirrored")
    assert seen(versions) == before + 20
    assert {(line["HOSTMESH_ROUTE"], line["HOSTMESH_SERVICE"], line["HOSTMESH_STATUS"]) for line in lines} == {
        ("copied", "shelf-v3", "200")
    }


def test_a_mirror_that_hangs_slows_nobody_and_has_few_copies(versions: Shelf) -> None:
    h1, before = versions.world.h1, seen(versions)
    requests = [("GET", "/hang", {})] * 1500
    alone = p99(versions.ask(requests, 4))
    dropped = total(h1, DROPPED)
    begun = time.monotonic()
    with versions.routes(MIRROR.format(percent=100)):
        beside = p99(versions.ask(requests, 4))
        took = time.monotonic() - begun
        left_out = total(h1, DROPPED) - dropped
    print(
        f"p99 {alone * 1e3:.1f} ms alone, {beside * 1e3:.1f} ms beside a hanging mirror; {left_out:g} copies left out"
    )
    assert beside < 3 * alone + 0.02
    copies = seen(versions) - before
    assert 4 <= copies <= 4 * (1 + took // 10), "four at once, for ten seconds each"
    assert copies + left_out == len(requests)
