"""What must be shown of processes short of descriptors or memory: told, nothing spins, traffic goes on or returns."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force, told
from tests.mesh.stoppable import stoppable
from tests.mesh.survival import load
from tests.mesh.world import World

AGENT, PROXY = "hostmeshd.service", "hostmesh-proxy.service"
HOLD = (Path(__file__).parent / "hold.py").read_text()
GREEDY = (Path(__file__).parent / "greedy.py").read_text()
TICKS = 100  # of /proc/PID/stat, a second (sysconf(3), _SC_CLK_TCK)


@contextlib.contextmanager
def limited(host: Host, unit: str, setting: str) -> Iterator[None]:
    """A limit of a drop-in for the length of a ``with``; the unit is restarted for it, the process before gone."""
    dropin, before = f"/run/systemd/system/{unit}.d/90-limit.conf", host.main_pid(unit)
    host.write(dropin, f"[Service]\n{setting}\n")
    host.systemctl("daemon-reload")
    host.systemctl("restart", "--no-block", unit)  # with too little it does not come up
    try:
        wait_until(lambda: host.main_pid(unit) != before, f"{unit}: the process before is gone", 20.0, 0.05)
        yield
    finally:
        host.exec(["rm", dropin]).must()
        host.systemctl("daemon-reload")
        host.systemctl("restart", unit)


def descriptors(host: Host, unit: str) -> int:
    """Open descriptors of a unit's main process."""
    return len(host.exec(["ls", f"/proc/{host.main_pid(unit)}/fd"]).stdout.split())


def cpu(host: Host, unit: str, seconds: float) -> float:
    """What share of a core the main process of a unit takes, over that time."""

    def used() -> int:
        fields = host.process_stat(unit)
        return int(fields[11]) + int(fields[12])

    before, began = used(), time.monotonic()
    wait_until(lambda: time.monotonic() - began >= seconds, "the time is over", seconds + 1, 0.1)
    return (used() - before) / TICKS / (time.monotonic() - began)


@contextlib.contextmanager
def held(w: World, connections: int, waiting: int) -> Iterator[dict[str, float]]:
    """Connections of `shop` to web that say nothing, and requests behind them; afterwards what came of those."""
    found: dict[str, float] = {}
    words = "web", "80", str(connections), str(waiting)
    hold = ["hostmesh", "run", "--unit", "shop", "--", "python3", "-c", HOLD, *words]
    with stoppable(w.h1, lambda stop: [*hold, stop]) as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "held\n"
        yield found
    found.update(json.loads(running.stdout))


def _may_call_orders(host: Host, unit: str) -> bool:
    """By the snapshot that the host's proxy has on disk."""
    orders = in_force.unit(host, "orders.service")
    assert orders
    return any(caller.endswith(f"/{unit}") for rule in orders["allow"] for caller in rule["callers"])


def proxy_without_descriptors(w: World) -> str:
    """The proxy at its LimitNOFILE: new connections wait, policy and status still reach it, told, no core is spun"""
    with limited(w.h1, PROXY, "LimitNOFILE=96"):
        wait_until(lambda: w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "web answers", 10.0, 0.1)
        cursor = w.h1.journal_cursor()
        with held(w, 120, 10) as found:
            said = told.in_status(w, w.h1, "proxy: no descriptors are left (LimitNOFILE=96)", "Raise LimitNOFILE=")
            told.in_journal(w.h1, cursor, "no descriptors are left")
            told.wait_metric(w.h1, "hostmesh_proxy_troubles", 1)
            share = cpu(w.h1, PROXY, 1.5)
            used = descriptors(w.h1, PROXY)
            w.h1.systemctl("restart", AGENT)  # a new connection for the agent, from what is kept
            wait_until(lambda: w.status(w.h1)["proxy"]["connected"], "the agent is back at the proxy", 10.0, 0.1)
            text = w.policy("orders.service").replace('from = ["shop"]', 'from = ["shop", "guest"]')
            with w.changed_policy(w.h1, "orders.service", text):
                wait_until(
                    lambda: _may_call_orders(w.h1, "guest"), "the changed policy is in force and kept", 10.0, 0.1
                )
        told.wait_metric(w.h1, "hostmesh_proxy_troubles", 0)
    assert found["early"] == 0, "there were descriptors left: it proves nothing"
    assert found["answered"] == 10, found
    assert share < 0.25, f"{share:.2f} of a core while it waits"
    return f"{used} of 96 used; waiting requests answered {found['slowest']} s after; {share:.2f} of a core; {said}"


def agent_with_too_little(w: World) -> str:
    """The agent with less than it needs: told with the remedy, not started again in vain; traffic goes on"""
    said = []
    with load(w, least=0, connections=2) as running:
        for setting in ("LimitNOFILE=20", "LimitAS=200M"):
            cursor = w.h1.journal_cursor()
            with limited(w.h1, AGENT, setting):
                said.append(
                    told.in_journal(w.h1, cursor, f"hostmeshd: {setting} is too little", f"systemctl edit {AGENT}")
                )
                wait_until(lambda: _state(w.h1, AGENT) == ("failed", "0"), "it waits for the administrator", 5.0, 0.1)
                asked = w.h1.exec(["hostmesh", "status"])
                assert asked.exit == 1 and f"systemctl status {AGENT}" in asked.stderr, asked
                assert setting in w.h1.exec(["systemctl", "status", AGENT]).stdout
    assert running.number("failed") == 0, running.told
    return f"0 of {running.told['requests']} requests failed; {'; '.join(said)}"


def _state(host: Host, unit: str) -> tuple[str, str]:
    """Whether it runs, and how often it was started again by itself."""
    active, restarts = (
        host.exec(["systemctl", "show", "-P", what, unit]).must().stdout.strip()
        for what in ("ActiveState", "NRestarts")
    )
    return active, restarts


def proxy_without_memory(w: World) -> str:
    """The proxy near its LimitAS=: told, traffic goes on; beyond it: it ends, told, and is back in 2 s as it was"""
    w.h2.exec(["truncate", "--size=1G", "/var/www/html/large"]).must()
    # As with the next limit, too little for an arena of malloc: 64 MB, which a thread has if they happen to lie well.
    with limited(w.h1, PROXY, "LimitAS=64M"):
        wait_until(lambda: _state(w.h1, PROXY)[0] == "active", "the proxy has begun", 10.0, 0.1)
        used = _address_space(w.h1, PROXY)
    cursor, stop = w.h1.journal_cursor(), f"/run/greedy-{time.monotonic_ns()}"
    with limited(w.h1, PROXY, f"LimitAS={round(used * 1.08)}"):
        said = told.in_status(w, w.h1, "proxy: 90 % and more of the memory", "Raise LimitAS= of hostmesh-proxy.service")
        with load(w, least=500, connections=2) as running:
            told.wait_metric(w.h1, "hostmesh_proxy_troubles", 1)
        assert running.number("failed") == 0, running.told
        serials, pid = w.serials(w.h1), w.h1.main_pid(PROXY)
        ask = ["python3", "-c", GREEDY, "web", "80", "/large", "150", stop]
        with w.h1.popen(["hostmesh", "run", "--unit", "shop", "--", *ask]) as greedy:
            w.h1.wait_another_process(PROXY, pid, 20.0)
            began = time.monotonic()
            w.h1.exec(["touch", stop]).must()
            greedy.communicate(timeout=60)
        told.in_journal(w.h1, cursor, "memory allocation of", "failed")
        wait_until(lambda: w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "web answers", 10.0, 0.05)
        back = time.monotonic() - began
        wait_until(lambda: w.serials(w.h1) == serials, "the same serials", 10.0, 0.1)
    assert serials and back < 5.0, back
    return f"{used >> 20} MB used of {used * 1.08 / 2**20:.0f}; web answers {back:.1f} s after its end; {said}"


def _address_space(host: Host, unit: str) -> int:
    status = host.read(f"/proc/{host.main_pid(unit)}/status")
    (line,) = [line for line in status.splitlines() if line.startswith("VmSize:")]
    return int(line.split()[1]) * 1024
