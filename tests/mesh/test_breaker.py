"""Limits hold, a dead backend is left alone, retries make no storm: counted at the backend."""

import json

import pytest

from tests.lab.waiting import wait_until
from tests.mesh.told import total
from tests.mesh.twins import Twins

pytestmark = pytest.mark.lab
# Opens connections and waits for the other side's first line: how many got one, how many were reset.
OPEN = """
import json, socket, sys
held, reset = [], 0
for _ in range(int(sys.argv[1])):
    try:
        connection = socket.create_connection(("twin", 9091), 5)
        held.append((connection, connection.recv(100) or 1 / 0))
    except (ConnectionResetError, ZeroDivisionError):
        reset += 1
print(json.dumps([len(held), reset]))
"""


def test_requests_over_the_limit_are_refused_at_once_and_told(pair: Twins) -> None:
    h1 = pair.w.h1
    pair.treat("breaker = { max_requests = 4 }\n")
    cursor = h1.journal_cursor()
    for host in (h1, pair.w.h2):
        pair.does(host, "after 1")
    try:
        asked = pair.ask(12, connections=12)
    finally:
        for host in (h1, pair.w.h2):
            pair.does(host, "200")
    assert (asked.of("200"), asked.of("breaker-open")) == (4, 8), asked.answers
    assert asked.took[7] < 0.5, "at once"
    pair.told(cursor, "breaker open: twin has max_requests = 4 in use")
    pair.told(cursor, "breaker closed: twin, max_requests = 4")
    of = {"service": "twin", "resource": "requests"}
    assert total(h1, "hostmesh_breaker_refused_total", **of) == 8
    names = ("hostmesh_breaker_limit", "hostmesh_breaker_in_use", "hostmesh_breaker_open")
    assert [total(h1, name, **of) for name in names] == [4, 0, 0]
    assert pair.ask(100).of("200") == 100


def test_those_that_wait_are_few_and_get_their_turn(pair: Twins) -> None:
    with pair.only(pair.w.h2):
        pair.treat("", endpoints=1)
        pair.ask(20, connections=4)  # connections of the wire that wait for requests
        pair.treat("breaker = { max_connections = 2, max_pending = 3 }\n", endpoints=1)
        pair.does(pair.w.h2, "after 0.5")
        try:
            asked = pair.ask(10, connections=10)
        finally:
            pair.does(pair.w.h2, "200")
    assert (asked.of("200"), asked.of("breaker-open")) == (5, 5), asked.answers
    assert 1.4 < asked.took[-1] < 2.5, "two, then two, then one"


def test_connections_of_tcp_count_too(pair: Twins) -> None:
    pair.treat("breaker = { max_connections = 3 }\n")
    told = pair.w.guest("python3", "-c", OPEN, "5").must().stdout
    assert json.loads(told) == [3, 2]
    assert json.loads(pair.w.guest("python3", "-c", OPEN, "3").must().stdout) == [3, 0], "what ended makes room"


def test_a_dead_backend_is_left_alone_until_it_lives(pair: Twins) -> None:
    both = (pair.w.h1, pair.w.h2)
    pair.treat('timeout = "1s"\nbreaker = { max_requests = 20 }\n')
    cursor, before = pair.w.h1.journal_cursor(), sum(map(pair.requests, both))
    for host in both:
        pair.does(host, "hang")
    try:
        asked = pair.ask(600, pace=200, connections=60)
    finally:
        for host in both:
            pair.does(host, "200")
    reached = sum(map(pair.requests, both)) - before
    assert asked.of("timeout") == reached, (asked.answers, reached)
    assert 20 <= reached <= 80, "twenty at a time, each for a second"
    assert asked.of("breaker-open") == 600 - reached
    pair.told(cursor, "breaker open")
    pair.told(cursor, "breaker closed")
    assert pair.ask(100).of("200") == 100


def test_no_storm_of_retries(pair: Twins) -> None:
    both = (pair.w.h1, pair.w.h2)
    pair.treat('retries = { attempts = 3, on = ["5xx"], budget = 0.2 }\n')
    for host in both:
        pair.does(host, "503")
    recent = pair.recent()
    before, spent = sum(map(pair.requests, both)), total(pair.w.h1, "hostmesh_retry_budget_spent_total", service="twin")
    try:
        asked = pair.ask(10_000, pace=2000, connections=40)
        wait_until(lambda: asked.of("503") == 10_000, "every request was answered", 1.0)
    finally:
        for host in both:
            pair.does(host, "200")
    reached = sum(map(pair.requests, both)) - before
    print(f"10,000 requests in {asked.lasted:.1f} s: {reached} reached the backend")
    assert asked.lasted < 7, "2,000 a second, nearly"
    assert 11_000 < reached <= 10_000 + 0.2 * (10_000 + recent), (reached, recent)
    after = total(pair.w.h1, "hostmesh_retry_budget_spent_total", service="twin")
    assert after - spent >= 8_000, "the budget was what held them back"
