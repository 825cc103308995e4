"""`systemctl reload hostmesh-proxy` changes the binary under load: nothing fails, nothing is cut, nobody is left."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.told import in_journal
from tests.mesh.upgrade import AGENT, PROXY, answered, generations, memory_kb, reload, steady
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@contextlib.contextmanager
def alone_again(w: World) -> Iterator[None]:
    """After the ``with`` each proxy is one process: those before it had no more to do."""
    yield
    for host in (w.h1, w.h2):
        wait_until(lambda host=host: generations(host) == [host.main_pid(PROXY)], "one process each", 30.0, 0.2)


def counted(w: World) -> tuple[int, int]:
    """Requests of shop to nginx that both hosts' /metrics have: the caller's proxy's, the callee's."""
    called = answered(w.h2, direction="inbound", source="spiffe://mesh.test/unit/shop", destination="nginx.service")
    return answered(w.h1, direction="outbound", source="shop.service", destination="web"), called


def test_reload_of_proxies_and_restart_of_agents_under_load(mesh: World, rounds: Callable[[int, int], int]) -> None:
    times = rounds(2, 20)
    least = rounds(0, 10_000)
    first = {host.name: host.main_pid(PROXY) for host in (mesh.h1, mesh.h2)}
    seen, took = [counted(mesh)], []
    with alone_again(mesh):
        with steady(mesh) as load:
            for _ in range(times):
                for host in (mesh.h1, mesh.h2):
                    took.append(reload(host))
                    host.systemctl("restart", AGENT)
                load.wait_for(5)
                seen.append(counted(mesh))
            load.wait_for_all(least)
            memory = {host.name: memory_kb(host) for host in (mesh.h1, mesh.h2)}
            assert all(first[name] in of for name, of in memory.items()), "the first ones serve what was held"
            retired = mesh.status(mesh.h1)["proxy"]["retired"]
            assert first["h1"] in [old["pid"] for old in retired], retired
        for name, of in memory.items():
            print(f"{name}: {len(of)} generations, KB resident: {of}")
        print(f"{times} rounds, reloads {min(took):.2f}..{max(took):.2f} s;", load.told)
        assert load.total("requests") >= least
        assert (load.total("failed"), load.total("cut")) == (0, 0), load.told
        assert min(count["requests"] for count in load.told.values()) > 5 * times, load.told
        http = sum(count["requests"] for name, count in load.told.items() if name.startswith("http"))
        exact = (seen[0][0] + http, seen[0][1] + http)
        wait_until(lambda: counted(mesh) == exact, f"all processes count together, to {exact}", 5.0, 0.1)
        for counts in zip(*seen, strict=True):
            assert list(counts) == sorted(counts), "a counter fell"


@contextlib.contextmanager
def changed_unit(host: Host, settings: str) -> Iterator[None]:
    """The proxy's unit with a drop-in, for the length of a ``with``; it is not restarted."""
    path = f"/run/systemd/system/{PROXY}.d/90-test.conf"
    host.write(path, f"[Service]\n{settings}\n")
    host.systemctl("daemon-reload")
    try:
        yield
    finally:
        host.exec(["rm", path]).must()
        host.systemctl("daemon-reload")


def test_a_new_process_that_does_not_come_up_changes_nothing(mesh: World) -> None:
    before, cursor = mesh.h2.main_pid(PROXY), mesh.h2.journal_cursor()
    broken = (
        "ExecReload=\nExecReload=/usr/local/bin/hostmesh-proxy --reload --control /run/hostmesh-proxy/none/control.sock"
    )
    with steady(mesh) as load, changed_unit(mesh.h2, broken):
        assert not mesh.h2.exec(["systemctl", "reload", PROXY]).ok
        load.wait_for(5)
    in_journal(mesh.h2, cursor, "nothing was changed over, the proxy that runs goes on")
    assert (mesh.h2.main_pid(PROXY), generations(mesh.h2)) == (before, [before])
    assert (load.total("failed"), load.total("cut")) == (0, 0), load.told


HELD = """
import http.client, sys
held = http.client.HTTPConnection("web", 80, timeout=20)
held.connect()
held.auto_open = 0
for _ in sys.stdin:
    try:
        held.request("GET", "/")
        answer = held.getresponse()
        answer.read()
        print(answer.status, flush=True)
    except (http.client.HTTPException, OSError):
        print("ended", flush=True)
"""


@contextlib.contextmanager
def held(w: World) -> Iterator[Callable[[], str]]:
    """One connection of shop to nginx: each call asks once on it and gives the status, or ``ended``."""
    command = ["hostmesh", "run", "--unit", "shop", "--", "python3", "-uc", HELD]
    with w.h1.popen(command, stdin=subprocess.PIPE) as process:
        asking, answers = process.stdin, process.stdout
        assert asking
        assert answers

        def ask() -> str:
            asking.write("\n")
            asking.flush()
            return answers.readline().strip()

        yield ask
        asking.close()


def test_a_policy_of_now_reaches_connections_from_before(mesh: World) -> None:
    """A held connection is of the generation of before: a policy of now refuses its next request."""
    refusing = mesh.policy("shop.service").replace('"web", ', "")
    assert refusing != mesh.policy("shop.service")
    with alone_again(mesh), held(mesh) as ask:
        assert ask() == "200"
        old = mesh.h1.main_pid(PROXY)
        reload(mesh.h1)
        assert ask() == "200"
        with mesh.changed_policy(mesh.h1, "shop.service", refusing):
            begun = time.monotonic()
            wait_until(lambda: ask() == "403", "the held connection is refused", 5.0, 0.02)
            print(f"refused after {time.monotonic() - begun:.2f} s by a connection of before")
        assert old in generations(mesh.h1), "its connection is held"


def test_connections_from_before_end_when_that_is_set(mesh: World) -> None:
    command = "/usr/local/bin/hostmesh-proxy --retire-after 1"
    settings = f"ExecStart=\nExecStart={command}\nExecReload=\nExecReload={command} --reload"
    with changed_unit(mesh.h1, settings):
        mesh.h1.systemctl("restart", PROXY)
        with alone_again(mesh), held(mesh) as ask:
            assert ask() == "200"
            reload(mesh.h1)
            wait_until(lambda: ask() == "ended", "the held connection is closed", 10.0, 0.1)
    mesh.h1.systemctl("restart", PROXY)


def test_a_crash_of_the_new_one_leaves_the_old_ones_and_a_stop_ends_all(mesh: World) -> None:
    with steady(mesh) as load:
        old = mesh.h1.main_pid(PROXY)
        reload(mesh.h1)
        load.wait_for(5)
        crashed = mesh.h1.main_pid(PROXY)
        mesh.h1.exec(["kill", "-9", str(crashed)]).must()
        mesh.h1.wait_another_process(PROXY, crashed, 5.0)
        load.wait_for(5)
        assert old in generations(mesh.h1)
    assert {name: count["cut"] for name, count in load.told.items() if name.endswith("held")} == {
        "http held": 0,
        "redis held": 0,
        "postgres held": 0,
    }
    mesh.h1.systemctl("stop", PROXY)
    assert not mesh.h1.exists(f"/sys/fs/cgroup/system.slice/{PROXY}"), "nothing of it runs"
    mesh.h1.systemctl("start", PROXY)
    # A stop takes the keys out of systemd's hands.
    wait_until(lambda: "shop.service" in mesh.serials(mesh.h1), "shop has an identity again", 20.0, 0.1)
