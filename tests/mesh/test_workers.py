"""A worker of the proxy that is busy has a helper: connections go there and come back, and no request notices."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.stoppable import stoppable
from tests.mesh.survival import load
from tests.mesh.told import metric, wait_above
from tests.mesh.upgrade import PROXY, answered, reload
from tests.mesh.world import World
from tests.mesh.wrk import all_answered

pytestmark = pytest.mark.lab
MOVED = "hostmesh_proxy_moved_total"
WORKER, HELPER = "worker-0", "worker-1"
FLOW = {"direction": "outbound", "source": "shop.service", "destination": "web"}
PAUSE = 0.04  # 16 connections ask 400 times a second at most: little


def busy(host: Host) -> dict[str, float]:
    """Seconds of the processor that each thread of the proxy took."""
    folder = f"/proc/{host.main_pid(PROXY)}/task"
    said = host.exec(["sh", "-c", f"for task in {folder}/*; do cat $task/comm $task/schedstat; done"]).must().stdout
    lines = said.splitlines()
    return {name: int(stat.split()[0]) / 1e9 for name, stat in zip(lines[::2], lines[1::2], strict=True)}


@contextlib.contextmanager
def downloads(mesh: World) -> Iterator[list[int]]:
    """Two at a time, a GB each, while the ``with`` body runs: h2 is busy on any machine. Afterwards: how many."""
    mesh.h2.exec(["truncate", "--size=1G", "/var/www/html/gigabyte"]).must()
    done, counts = answered(mesh.h1, **FLOW), list[int]()

    def argv(stop: str) -> list[str]:
        loop = f"until [ -e {stop} ]; do curl -sSf -o /dev/null http://web/gigabyte || exit 1; echo done; done"
        return ["hostmesh", "run", "--unit", "shop", "--", "sh", "-c", f"{loop} & {loop}; wait $!"]

    with stoppable(mesh.h1, argv) as running:
        wait_until(lambda: answered(mesh.h1, **FLOW) > done + 2, "downloads", 30.0, 0.1)
        yield counts
    counts.append(running.stdout.count("done"))


def test_a_busy_worker_has_a_helper_which_rests_when_there_is_little_to_do(mesh: World) -> None:
    hosts = (mesh.h1, mesh.h2)
    counted = answered(mesh.h1, **FLOW)
    with load(mesh, least=0, connections=16, pause=PAUSE) as held:
        # h1's helper has a wire connection of its own, and h2's worker, busy with downloads, leaves that to its helper.
        with downloads(mesh) as downloaded:
            before = {host.name: busy(host) for host in hosts}
            moved = metric(mesh.h1, MOVED)
            requests = all_answered(mesh.shop("wrk", "-t1", "-c32", "-d4s", "http://web/").must().stdout)
            helped = metric(mesh.h1, MOVED) - moved
            assert helped > 8, "of 48 connections about half"
            for host in hosts:
                more = {name: busy(host)[name] - before[host.name][name] for name in (WORKER, HELPER)}
                assert more[HELPER] > more[WORKER] / 8, (host.name, more)

        def rests() -> bool:
            seen = busy(mesh.h1)
            done = answered(mesh.h1, **FLOW)
            wait_until(lambda: answered(mesh.h1, **FLOW) >= done + 200, "200 requests more", 10.0, 0.1)
            now = busy(mesh.h1)
            return now[HELPER] - seen[HELPER] < (now[WORKER] - seen[WORKER]) / 20

        wait_until(rests, "the helper has nothing to do", 20.0)
    assert held.number("failed") == 0, held.told
    requests += int(held.number("requests")) + sum(downloaded)
    # wrk leaves when its time is over, whatever is under way.
    wait_until(lambda: 0 <= answered(mesh.h1, **FLOW) - counted - requests <= 32, "both count together", 5.0, 0.1)


def test_a_reload_while_connections_move_costs_none(mesh: World) -> None:
    wrk = ["hostmesh", "run", "--unit", "shop", "--", "wrk", "-t1", "-c32", "-d4s", "http://web/"]
    with load(mesh, least=0, connections=16, pause=PAUSE) as held:
        for _ in range(2):
            moved = metric(mesh.h1, MOVED)
            with mesh.h1.popen(wrk) as process:
                wait_above(mesh.h1, MOVED, moved)
                for host in (mesh.h1, mesh.h2):
                    reload(host)
                said, errors = process.communicate(timeout=30)
            assert process.returncode == 0, errors
            all_answered(said)
    assert held.number("failed") == 0, held.told
