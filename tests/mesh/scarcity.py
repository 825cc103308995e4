"""What must be shown of processes that are short of descriptors: told, nothing spins, and who waits is served."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import told
from tests.mesh.survival import main_pid
from tests.mesh.world import World

AGENT, PROXY = "hostmeshd.service", "hostmesh-proxy.service"
HOLD = (Path(__file__).parent / "hold.py").read_text()
TICKS = 100  # of /proc/PID/stat, a second (sysconf(3), _SC_CLK_TCK)


@contextlib.contextmanager
def limited(host: Host, unit: str, setting: str) -> Iterator[None]:
    """A limit of a drop-in for the length of a ``with``; the unit is restarted for it."""
    dropin = f"/run/systemd/system/{unit}.d/90-limit.conf"
    host.write(dropin, f"[Service]\n{setting}\n")
    host.systemctl("daemon-reload")
    host.systemctl("restart", "--no-block", unit)
    try:
        yield
    finally:
        host.exec(["rm", dropin]).must()
        host.systemctl("daemon-reload")
        host.systemctl("restart", unit)


def descriptors(host: Host, unit: str) -> int:
    """Open descriptors of a unit's main process."""
    return len(host.exec(["ls", f"/proc/{main_pid(host, unit)}/fd"]).stdout.split())


def cpu(host: Host, unit: str, seconds: float) -> float:
    """What share of a core the main process of a unit takes, over that time."""

    def used() -> int:
        fields = host.read(f"/proc/{main_pid(host, unit)}/stat").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, began = used(), time.monotonic()
    wait_until(lambda: time.monotonic() - began >= seconds, "the time is over", seconds + 1, 0.1)
    return (used() - before) / TICKS / (time.monotonic() - began)


@contextlib.contextmanager
def held(w: World, connections: int, waiting: int) -> Iterator[dict[str, float]]:
    """Connections of `shop` to web that say nothing, and requests behind them; afterwards what came of those."""
    stop, found = f"/run/hold-{time.monotonic_ns()}", {}
    command = ["python3", "-c", HOLD, "web", "80", str(connections), str(waiting), stop]
    with w.h1.popen(["hostmesh", "run", "--unit", "shop", "--", *command]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield found
        finally:
            w.h1.exec(["touch", stop]).must()
            stdout, stderr = process.communicate(timeout=60)
            w.h1.exec(["rm", stop]).must()
    assert process.returncode == 0, stderr
    found.update(json.loads(stdout))


def _may_call_orders(host: Host, unit: str) -> bool:
    """By the snapshot that the host's proxy has on disk."""
    snapshot = json.loads(host.read("/var/lib/hostmesh-proxy/snapshot.json"))
    (orders,) = [known for known in snapshot["units"] if known["unit"] == "orders.service"]
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
