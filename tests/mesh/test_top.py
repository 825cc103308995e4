"""`hostmesh top` on real hosts, under a load whose figures are known."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.mesh.twins import Twins
from tests.mesh.watching import watching

pytestmark = pytest.mark.lab


def test_rates_times_and_errors_are_those_of_the_load(pair: Twins) -> None:
    h1 = pair.w.h1
    pair.treat('retries = { attempts = 2, on = ["5xx"], budget = 1.0 }\nbreaker = { max_requests = 60 }\n')
    pair.does(pair.w.h2, "503")
    pair.does(h1, "503")
    try:
        with ThreadPoolExecutor() as threads, watching(h1, "top", "--json") as top:
            top.line()
            asking = threads.submit(pair.ask, 1_000, pace=200, connections=20)
            readings = [top.line() for _ in range(6)]
            asked = asking.result()
    finally:
        pair.does(pair.w.h2, "200")
        pair.does(h1, "200")
    rows = [
        row for one in readings for row in one["units"] if (row["unit"], row["direction"]) == ("guest.service", "out")
    ]
    assert asked.of("503") == 1_000
    busiest = max(rows, key=lambda row: row["requests"])
    assert 150 < busiest["requests"] < 250, rows
    assert busiest["errors_percent"] == 100 and 0 < busiest["p50"] <= busiest["p99"] < 1
    assert busiest["retries"] > 150 and busiest["bytes_in"] > 0 and busiest["bytes_out"] > 0
    assert 0 < busiest["certificate_seconds"] < 25 * 3600
    assert any(one["connections"] >= 20 for one in readings)


def test_a_denied_call_is_counted_where_it_is_denied(pair: Twins) -> None:
    with watching(pair.w.h2, "top", "--json", "--sort", "denied") as top:
        top.line()
        calls = "for i in 1 2 3 4 5; do curl -s -o /dev/null http://inventory/products/1; done"
        pair.w.guest("sh", "-c", calls).must()
        first = max((top.line()["units"][0] for _ in range(2)), key=lambda row: row["denied"])
    assert (first["unit"], first["direction"]) == ("inventory.service", "in") and first["denied"] > 0


def test_one_table_a_pipe_and_a_narrow_terminal(pair: Twins) -> None:
    h1 = pair.w.h1
    once = h1.exec(["hostmesh", "top", "--once", "--sort", "unit"]).must().stdout.splitlines()
    assert "connections open, no breaker open" in once[0]
    head = ["UNIT", "DIR", "REQ/S", "ERR", "%", "P50", "P99", "RETRY/S", "DENIED/S", "B/S", "IN", "B/S", "OUT", "CERT"]
    assert once[1].split() == head
    units = [line.split()[0] for line in once[2:]]
    assert units == sorted(units) and {"guest", "orders", "shop", "twin"} <= set(units)
    two = h1.exec(["timeout", "--signal=INT", "2.7", "hostmesh", "top"]).stdout
    assert two.count("connections open") == 2 and "\x1b" not in two
    narrow = h1.exec(["script", "-qec", "stty cols 40 rows 6; hostmesh top --once", "/dev/null"]).must().stdout
    lines = narrow.replace("\x1b[H", "").replace("\x1b[K", "").replace("\x1b[J", "").splitlines()
    assert len(lines) <= 6 and max(map(len, lines)) <= 40 and lines[1].startswith("UNIT")
    assert json.loads(h1.exec(["hostmesh", "top", "--once", "--json"]).must().stdout)["units"]
