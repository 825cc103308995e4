"""How long callers wait, by the clock, and how often they try, counted at the backend."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.twins import Asked, Twins

pytestmark = pytest.mark.lab
# The budget is another test's: here it does not count what others asked before.
MISSION = """timeout = "10s"
retries = { attempts = 3, per_try_timeout = "2s", on = ["5xx", "connect-failure"], budget = 1 }
"""
# Says something so often, at this distance, then nothing: when the connection was ended, from the last word on.
SAY = """
import json, socket, sys, time
connection = socket.create_connection(("twin", 9091), 5)
connection.recv(100)
for _ in range(int(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
    connection.sendall(b"x")
    connection.recv(100)
begun, how = time.monotonic(), "end"
connection.settimeout(10)
try:
    connection.recv(100)
except ConnectionResetError:
    how = "reset"
print(json.dumps([how, time.monotonic() - begun]))
"""


def one(pair: Twins, what: str) -> tuple[Asked, int]:
    """One request while both endpoints do this, and how often it reached one of them."""
    both = (pair.w.h1, pair.w.h2)
    before = sum(map(pair.requests, both))
    for host in both:
        pair.does(host, what)
    try:
        asked = pair.ask(1, connections=1)
    finally:
        for host in both:
            pair.does(host, "200")
    return asked, sum(map(pair.requests, both)) - before


def test_the_missions_policy(pair: Twins) -> None:
    pair.treat(MISSION)
    asked, tries = one(pair, "hang")
    assert (list(asked.answers), tries) == (["504 timeout"], 3)
    assert 6.0 <= asked.took[0] < 6.5, "three tries of two seconds"
    asked, tries = one(pair, "500")
    assert (asked.of("500"), tries) == (1, 3)
    assert asked.took[0] < 0.5
    asked, tries = one(pair, "404")
    assert (asked.of("404"), tries) == (1, 1), "no failure that it names"
    asked, tries = one(pair, "after 1.5")
    assert (asked.of("200"), tries) == (1, 1), "slow, and in time"


def test_all_tries_together(pair: Twins) -> None:
    pair.treat(MISSION.replace("10s", "3s"))
    asked, tries = one(pair, "hang")
    assert (list(asked.answers), tries) == (["504 timeout"], 2)
    assert 3.0 <= asked.took[0] < 3.4


def test_waits_between_tries_are_as_written(pair: Twins) -> None:
    pair.treat(
        'retries = { attempts = 4, budget = 1, on = ["retriable-4xx"], backoff = "200ms", max_backoff = "300ms" }\n'
    )
    seconds = []
    for status in ("429", "409", "425"):
        asked, tries = one(pair, status)
        assert (asked.of(status), tries) == (1, 4)
        seconds += asked.took
    assert max(seconds) < 0.2 + 0.3 + 0.3 + 0.3
    assert sum(seconds) / 3 > 0.15, "by chance, 400 ms in the mean"


@contextmanager
def unreachable(host: Host) -> Iterator[None]:
    """What comes to the host's proxy from other hosts is lost."""
    rule = "table inet lost { chain in { type filter hook input priority -300; iifname eth0 tcp dport 15008 drop; }; }"
    host.exec(["nft", rule]).must()
    try:
        yield
    finally:
        host.exec(["nft", "delete table inet lost"]).must()


def test_a_connection_that_does_not_come(pair: Twins) -> None:
    pair.treat('connect_timeout = "500ms"\nbalance = "round-robin"\n')
    with pair.only(pair.w.h2):
        with unreachable(pair.w.h2):
            # What was open when the host went is another matter: it is noticed by its silence.
            pair.w.h1.systemctl("restart", "hostmesh-proxy.service")
            wait_until(lambda: "guest.service" in pair.w.serials(pair.w.h1), "guest can call", 10.0, 0.1)
            asked = pair.ask(1, connections=1)
        assert list(asked.answers) == ["503 connect-failure"]
        assert 0.5 <= asked.took[0] < 0.8
        wait_until(lambda: pair.ask(1).of("200") == 1, "h2 is reached again", 20.0, 0.5)


def test_nothing_moves(pair: Twins) -> None:
    pair.treat('idle_timeout = "1s"\n')
    how, seconds = json.loads(pair.w.guest("python3", "-c", SAY, "6", "0.3").must().stdout)
    assert how == "reset"
    assert 1.0 <= seconds < 1.4, "from the last byte on"
    asked, tries = one(pair, "hang")
    assert (list(asked.answers), tries) == (["504 timeout"], 1)
    assert 1.0 <= asked.took[0] < 1.4
    asked, _ = one(pair, "after 0.7")
    assert asked.of("200") == 1
