"""Routes of a service, through two real hosts: what fits, where it leads, and what is made of a request on its way."""

from collections.abc import Iterator

import pytest

from tests.mesh.routes import routes_of
from tests.mesh.shelf import Shelf, shelf
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def versions(mesh: World) -> Iterator[Shelf]:
    with shelf(mesh) as made, made.routes(routes_of("shelf", removed="x-served-by")):
        yield made


FITS = [
    (("GET", "/products/7", {"x-canary": "1"}), "shelf-v2", "/products/7"),
    (("GET", "/products/7", {"x-canary": "2"}), "shelf", "/products/7"),
    (("GET", "/products/7", {}), "shelf", "/products/7"),
    (("PUT", "/products/7", {"x-canary": "1"}), "shelf", "/products/7"),
    (("GET", "/other/7", {"x-canary": "1"}), "shelf", "/other/7"),
    (("GET", "/products/7/reviews?v=2", {}), "shelf", "/products/7/reviews?v=2"),
    (("GET", "/static/a/b.css?x=1", {}), "shelf", "/files/a/b.css?x=1"),
    (("GET", "/%70roducts/%37", {"x-canary": "1"}), "shelf-v2", "/%70roducts/%37"),
]


def test_the_first_that_fits(versions: Shelf) -> None:
    answers = versions.ask([request for request, _, _ in FITS])
    for answer, (request, by, target) in zip(answers, FITS, strict=True):
        assert (answer.status, answer.by, answer.seen["target"]) == (200, by, target), request


def test_what_is_made_of_a_request_and_its_response(versions: Shelf) -> None:
    with versions.recorded() as cursor:
        [answer] = versions.ask([("POST", "/products/7?v=2", {"x-set": "old", "x-gone": "1", "x-add": "1"}, "a body")])
        [line] = versions.told(cursor, HOSTMESH_ROUTE="rewritten")
    headers = answer.seen["headers"]
    assert (answer.seen["method"], answer.seen["target"], answer.seen["body"]) == ("POST", "/v2/items/7?v=2", "a body")
    assert (headers["host"], headers["x-set"], headers["x-add"]) == ("shelf-v2.example", "new", "2")
    assert "x-gone" not in headers and headers["x-hostmesh-peer"].endswith("/unit/shop")
    assert (answer.headers["server"], answer.by) == ("mesh", "")
    assert (line["HOSTMESH_PATH"], line["HOSTMESH_SERVICE"]) == ("/products/7", "shelf-v2")


ANSWERED = [
    ("/p/7?a=b", 308, "redirected", "moved"),
    ("/closed", 503, "responded", "closed"),
    ("/nowhere", 503, "no-route", "nowhere"),
    ("/forbidden", 403, "denied", "forbidden"),
    ("/products/../p/7", 400, "bad-path", "prefix"),
]


def test_what_is_answered_on_the_callers_host(versions: Shelf) -> None:
    """Also the route to inventory: the caller's own [outbound] names it not."""
    with versions.recorded() as cursor:
        answers = versions.ask([("GET", path, {}) for path, _, _, _ in ANSWERED])
        for answer, (path, status, flag, route) in zip(answers, ANSWERED, strict=True):
            assert (answer.status, answer.headers["x-hostmesh-error"], answer.by) == (status, flag, ""), path
            lines = versions.told(cursor, HOSTMESH_FLAG=flag)
            assert {line["HOSTMESH_ROUTE"] for line in lines} == {route}
    moved, closed, *_ = answers
    assert moved.headers["location"] == "https://shop.example.org/products/7?a=b"
    assert (closed.body, closed.headers["retry-after"]) == ("closed for today", "60")


def test_the_called_version_judges_the_caller_itself(versions: Shelf) -> None:
    world = versions.world
    closed = '[service]\nname = "shelf-v2"\n[service.ports]\n8092 = "http"\n[[inbound.allow]]\nfrom = ["guest"]\n'
    with world.changed_policy(world.h2, "shelf-v2.service", closed):
        cursor = world.h2.journal_cursor()
        answers = versions.ask([("GET", "/products/7", {"x-canary": "1"})])
        while answers[-1].status == 200:  # until the policy is in force
            answers = versions.ask([("GET", "/products/7", {"x-canary": "1"})])
        assert answers[-1].status == 403
        assert world.denials(world.h2, after=cursor, HOSTMESH_UNIT="shelf-v2.service", HOSTMESH_VERDICT="deny")
