"""What must be shown of a host that vanishes without a FIN: what is under way ends, told; new calls go elsewhere."""

import contextlib
import time
from collections.abc import Iterator

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import told
from tests.mesh.survival import load
from tests.mesh.world import POLICIES, World

ELSEWHERE = "nginx.service"
SILENT = 23.0  # a peer that says nothing for 15 to 20 s is given up (`proxy/src/wire/mod.rs`); the rest is leeway


@contextlib.contextmanager
def second_web(w: World) -> Iterator[None]:
    """The service `web` on h1 too, for the length of a ``with``."""
    w.h2.exec(["hostmesh", "controller", "grant", "h1", ELSEWHERE]).must()
    w.h1.systemctl("start", ELSEWHERE)
    w.h1.exec(["hostmesh", "enable", ELSEWHERE]).must()
    w.write_policy(w.h1, ELSEWHERE, w.policy(ELSEWHERE))
    try:
        w.h1.systemctl("restart", ELSEWHERE)
        wait_until(lambda: len(w.services(w.h1)["web"]["endpoints"]) == 2, "web has two endpoints", 20.0, 0.1)
        yield
    finally:
        w.h1.exec(["hostmesh", "disable", "--now", ELSEWHERE]).must()
        w.h1.systemctl("stop", ELSEWHERE)
        w.h1.exec(["rm", f"{POLICIES}/{ELSEWHERE}.toml.disabled"]).must()
        wait_until(lambda: len(w.services(w.h1)["web"]["endpoints"]) == 1, "web has one endpoint", 20.0, 0.1)


@contextlib.contextmanager
def vanished(w: World, host: Host) -> Iterator[None]:
    """Nothing comes from the host any more, and nothing arrives there; its neighbours see no sign of it."""
    w.lab.network.unplug(host)
    try:
        yield
    finally:
        w.lab.network.plug(host)


def _who(w: World) -> tuple[str, float]:
    """Which host served a new call of `web`, and how long that took."""
    timed = ["curl", "-sSf", "--max-time", "10", "-w", " %{time_total}", "http://web/who"]
    host, seconds = w.shop(*timed).must().stdout.split()
    return host, float(seconds)


def peer(w: World) -> str:
    """A host vanishes without a FIN: what is under way ends in 20 s, told; new calls go elsewhere at once; then back"""
    cursor = w.h1.journal_cursor()
    for host in (w.h1, w.h2):
        host.write("/var/www/html/who", host.name)
    with second_web(w), load(w, least=0, connections=8, path="/who") as running:
        wait_until(lambda: _who(w)[0] == "h2", "h2 is called too", 10.0)
        asked = ["ss", "-Htn", "state", "established", "( sport = :6379 )"]
        waiting = w.h1.popen(
            ["hostmesh", "run", "--unit", "shop", "--", "redis-cli", "-h", "redis", "blpop", "no", "0"]
        )
        wait_until(lambda: w.h2.exec(asked).stdout, "redis was asked", 10.0, 0.1)
        with vanished(w, w.h2):
            began = time.monotonic()
            stdout, stderr = waiting.communicate(timeout=SILENT + 10.0)
            ended = time.monotonic() - began
            said = told.in_journal(w.h1, cursor, "/unit/nginx on h2 is silent")
            calls = [_who(w) for _ in range(20)]
            refused = w.shop("redis-cli", "-h", "redis", "ping")
            told.in_journal(w.h1, cursor, "redis:6379", ":15008: ")  # no answer within 2 s, or no route: as ARP knows
        plugged = time.monotonic()
        wait_until(lambda: _who(w)[0] == "h2", "h2 is called again", 40.0)
        again = time.monotonic() - plugged
        wait_until(lambda: w.status(w.h1)["controller"]["connected"], "h1 has its controller", 40.0, 0.1)
    assert ended < SILENT, ended
    assert waiting.returncode or "rror" in stdout + stderr, (stdout, stderr)
    assert {host for host, _ in calls} == {"h1"}
    slowest = max(seconds for _, seconds in calls)
    assert slowest < 1.5, f"{slowest:.1f} s for a new call: it waited for h2"
    assert "PONG" not in refused.stdout
    assert running.number("failed") == 0 and running.number("slowest") < SILENT + 1.0, running.told
    return (
        f"under way ended after {ended:.1f} s; 20 new calls within {slowest:.2f} s each; h2 called again {again:.1f} s "
        f"after it was back; {running.told['requests']} requests, 0 failed, slowest {running.told['slowest']} s; {said}"
    )
