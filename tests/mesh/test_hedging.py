"""One of two endpoints is slow: the other is asked, too, within the budget. Counted at the endpoints."""

import json
from collections.abc import Callable, Iterator

import pytest

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.extra import OURS, Extra, added, served
from tests.mesh.told import total
from tests.mesh.twins import Asked, Twins
from tests.mesh.world import World

pytestmark = pytest.mark.lab
HEDGE = 'hedge = { after = "100ms" }\n'
BUDGET = 'balance = "round-robin"\nretries = { attempts = 1, budget = %s }\n'
# One request with a body: its answer, and how long it took.
SEND = """
import http.client, json, sys, time
method, size = sys.argv[1], int(sys.argv[2])
client, begun = http.client.HTTPConnection("twin", 80, timeout=20), time.monotonic()
client.request(method, "/", body=b"x" * size)
answer = client.getresponse()
print(json.dumps([answer.status, answer.read().decode(), time.monotonic() - begun]))
"""


@pytest.fixture
def slow(pair: Twins) -> Iterator[Host]:
    """The endpoint of the other host takes a second."""
    pair.does(pair.w.h2, "after 1")
    yield pair.w.h2
    pair.does(pair.w.h2, "200")


def percentile(asked: Asked, share: float) -> float:
    return asked.took[min(int(len(asked.took) * share), len(asked.took) - 1)]


def reached(pair: Twins) -> int:
    return sum(map(pair.requests, (pair.w.h1, pair.w.h2)))


def test_the_slow_tail_is_gone(pair: Twins, slow: Host, rounds: Callable[[int, int], int]) -> None:
    w, count = pair.w, rounds(200, 2000)
    pair.treat(BUDGET % 1)
    bare = pair.ask(count // 4, pace=100, connections=30)
    assert percentile(bare, 0.99) >= 1.0
    pair.treat(BUDGET % 1 + HEDGE)
    before, cursor = reached(pair), w.h1.journal_cursor()
    hedges = total(w.h1, "hostmesh_retries_total", source="guest.service", destination="twin")
    flags = total(w.h1, "hostmesh_flags_total", unit="guest.service", service="twin", flag="hedged")
    asked = pair.ask(count, pace=100, connections=30)
    more = reached(pair) - before - count
    print(f"p99 {percentile(bare, 0.99):.3f} s, hedged {percentile(asked, 0.99):.3f} s; {more} of {count} asked twice")
    assert asked.answers == {"200 h1": count}
    assert 0.1 <= percentile(asked, 0.99) < 0.3
    assert count * 0.4 < more <= count * 0.6, "those that went to the slow one first, and they once"

    def counted() -> bool:
        now = total(w.h1, "hostmesh_retries_total", source="guest.service", destination="twin")
        flagged = total(w.h1, "hostmesh_flags_total", unit="guest.service", service="twin", flag="hedged") - flags
        lines = w.h1.journal(unit="guest.service", after=cursor, HOSTMESH_KIND="retry")
        is_told = any("another endpoint is asked, too" in line["MESSAGE"] for line in lines)
        return is_told and (now - hedges, flagged) == (more, more)

    wait_until(counted, "each is counted, and told", 10.0, 0.1)


def test_no_more_than_the_budget(pair: Twins, slow: Host, rounds: Callable[[int, int], int]) -> None:
    w, count = pair.w, rounds(1000, 5000)
    pair.treat(BUDGET % 0.1 + HEDGE)
    spent = total(w.h1, "hostmesh_retry_budget_spent_total", service="twin")
    recent, before = pair.recent(), reached(pair)
    asked = pair.ask(count, pace=400, connections=300)
    more = reached(pair) - before - count
    print(f"{more} more of {count} at a budget of 0.1, {recent} requests before")
    assert asked.all == count
    assert 0 < more <= max(0.1 * (count + recent), 30 * (1 + asked.lasted / 10)), (more, recent)
    assert total(w.h1, "hostmesh_retry_budget_spent_total", service="twin") > spent


def test_never_twice_the_same_endpoint(pair: Twins, slow: Host) -> None:
    with pair.only(slow):
        pair.treat(BUDGET % 1 + HEDGE, endpoints=1)
        before = pair.requests(slow)
        asked = pair.ask(10, connections=10)
        assert (asked.answers, pair.requests(slow) - before) == ({"200 h2": 10}, 10)


def send(pair: Twins, method: str, size: int) -> tuple[str, float, int]:
    """Whose answer it was, how long it took, and how often it reached an endpoint."""
    before = reached(pair)
    status, name, seconds = json.loads(pair.w.guest("python3", "-c", SEND, method, str(size)).must().stdout)
    assert status == 200
    return name, seconds, reached(pair) - before


def test_what_may_not_happen_twice_does_not(pair: Twins, slow: Host) -> None:
    everybody = 'balance = { by = "consistent-hash", on = "source" }\nretries = { attempts = 1, budget = 1 }\n'
    pair.treat(everybody)
    first = slow if send(pair, "GET", 0)[0] == slow.name else pair.w.h1
    pair.does(slow, "200")
    pair.does(first, "after 1")
    try:
        pair.treat(everybody + HEDGE)
        name, seconds, tries = send(pair, "GET", 0)
        assert (name != first.name, tries) == (True, 2) and 0.1 <= seconds < 0.5
        assert send(pair, "POST", 0)[::2] == (first.name, 1)
        name, _, tries = send(pair, "PUT", 1000)
        assert (name != first.name, tries) == (True, 2), "its body is still here"
        assert send(pair, "PUT", 100_000)[::2] == (first.name, 1), "too long to be kept"
        pair.treat(everybody + HEDGE.replace(" }", ", non_idempotent = true }"))
        name, _, tries = send(pair, "POST", 1000)
        assert (name != first.name, tries) == (True, 2), "the policy says so"
    finally:
        pair.does(first, "200")


def test_who_fails_meanwhile_does_not_spoil_it(pair: Twins, slow: Host) -> None:
    """The second endpoint answers first, with a failure: the first one's answer is what counts."""
    pair.treat(BUDGET % 1 + HEDGE)
    pair.does(pair.w.h1, "503")
    try:
        asked = pair.ask(20, connections=20)
    finally:
        pair.does(pair.w.h1, "200")
    # Who was sent to the failing one first has its answer: 503 is none of what is tried again.
    assert asked.answers == {"200 h2": 10, "503 h1": 10}, asked.answers
    assert percentile(asked, 0.9) >= 1.0


def test_who_never_answers_is_no_loss(pair: Twins) -> None:
    pair.treat(BUDGET % 1 + 'timeout = "5s"\n' + HEDGE)
    pair.does(pair.w.h2, "hang")
    try:
        asked = pair.ask(40, pace=100, connections=20)
    finally:
        pair.does(pair.w.h2, "200")
    assert asked.answers == {"200 h1": 40}
    assert percentile(asked, 1) < 0.5


LATE = Extra(
    "late",
    8053,
    "grpc",
    "grpc_server.py",
    python=OURS,
    policy='[traffic]\nhedge = { after = "100ms", non_idempotent = true }\nretries = { attempts = 1, budget = 1 }\n',
)


def test_calls_of_grpc(mesh: World) -> None:
    """HTTP/2 to either endpoint, by one connection of the caller: what is overtaken disturbs no other call."""
    h1, h2 = mesh.h1, mesh.h2
    with served(mesh, LATE) as made, added(mesh, h1, LATE.unit, LATE.unit_file, LATE.written(), late=LATE.program):

        def both() -> bool:
            return len(mesh.services(h1)["late"]["endpoints"]) == 2

        wait_until(both, "h1 knows both endpoints", 15.0, 0.1)
        cursor = h1.journal_cursor()
        said = json.loads(made.client("grpc_client.py", f"{LATE.name}:{LATE.port}", "hedged").must().stdout)
        assert said["names"] == ["h1"]
        assert 0.1 <= said["slowest"] < 1.0
        assert mesh.denials(h1, after=cursor, HOSTMESH_UNIT="shop.service", HOSTMESH_KIND="retry")
    h2.exec(["hostmesh", "controller", "release", "late"]).must()
