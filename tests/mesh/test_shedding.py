"""`[overload]` through two real hosts: what is too much is refused at once, what is under way goes on."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hostmesh.policy.hostfile import PLACE
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.told import total
from tests.mesh.twins import Twins

pytestmark = pytest.mark.lab
# Gives the proxy so little time again and again that its workers come late to everything, for seconds.
CHOKE = """
import os, signal, sys, time
process, rounds, stopped = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for _ in range(rounds):
    os.kill(process, signal.SIGSTOP)
    time.sleep(stopped)
    os.kill(process, signal.SIGCONT)
    time.sleep(0.004)
"""


@contextlib.contextmanager
def overload(pair: Twins, text: str) -> Iterator[None]:
    """These words of `[overload]`, in force on the caller's host for the length of a ``with``."""
    h1 = pair.w.h1
    before = h1.read(PLACE)

    def put(settings: str, is_there: bool) -> None:
        h1.write(PLACE, settings)

        def is_known() -> bool:
            said = in_force.snapshot(h1)
            return any(said["overload"].values()) == is_there

        wait_until(is_known, f"{h1.name}: {text!r}", 20.0, 0.1)

    put(f"{before}\n[overload]\n{text}", True)
    try:
        yield
    finally:
        put(before, False)


def choked(host: Host, rounds: int, stopped: float) -> None:
    """The host's proxy stands still for so long, so often."""
    process = host.main_pid("hostmesh-proxy.service")
    host.exec(["python3", "-c", CHOKE, str(process), str(rounds), str(stopped)]).must()


def test_requests_beyond_those_in_flight_are_shed(pair: Twins) -> None:
    h1 = pair.w.h1
    with pair.only(pair.w.h2), overload(pair, "requests = 4\n"):
        shed = total(h1, "hostmesh_flags_total", flag="shed")
        cursor = h1.journal_cursor()
        pair.does(pair.w.h2, "after 1")
        try:
            asked = pair.ask(12, connections=12)
        finally:
            pair.does(pair.w.h2, "200")
        assert (asked.of("200"), asked.of("shed"), asked.of("503")) == (4, 8, 8), asked.answers
        assert asked.took[7] < 0.5, "at once"
        line = pair.w.denials(h1, after=cursor, HOSTMESH_UNIT="guest.service", HOSTMESH_FLAG="shed")[0]
        assert (line["HOSTMESH_STATUS"], line["HOSTMESH_KIND"]) == ("503", "error")
        wait_until(lambda: total(h1, "hostmesh_flags_total", flag="shed") == shed + 8, "they are counted", 5.0, 0.1)
        assert pair.ask(200, connections=4).of("200") == 200, "and room is given back"


def test_a_proxy_that_is_late_sheds_until_it_is_not(pair: Twins) -> None:
    h1 = pair.w.h1
    with pair.only(pair.w.h2), overload(pair, 'delay = "100ms"\n'), ThreadPoolExecutor() as threads:
        assert pair.ask(1000, pace=1000, connections=16).of("200") == 1000, "busy is not late"
        under_way = threads.submit(pair.ask, 600, pace=100, connections=32)
        choked(h1, 15, 0.25)
        asked = under_way.result()
        print(f"late again and again: {asked.answers}, the slowest took {asked.took[-1]:.2f} s")
        assert asked.of("200") + asked.of("shed") == 600, asked.answers
        assert asked.of("shed") >= 50 and asked.of("200") >= 100, asked.answers
        assert pair.ask(100).of("200") == 100, "it is over when it is over"
        under_way = threads.submit(pair.ask, 200, pace=100, connections=32)
        choked(h1, 1, 1.0)
        assert under_way.result().of("200") == 200, "one standstill is no load"
