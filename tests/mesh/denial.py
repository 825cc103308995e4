"""What must be shown of deny and audit: a policy that turns against an open connection ends it at once and says so."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.told import in_journal, total
from tests.mesh.world import POLICIES, SCRAPER, World

AT_ONCE = 1.0
CALLER = (Path(__file__).parent / "caller.py").read_text()
PONG = """
import socketserver
class Pong(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline():
            self.wfile.write(b"+PONG\\r\\n")
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", 9000), Pong).serve_forever()
"""
REDIS, NGINX = "redis-server.service", "nginx.service"


@dataclass
class Called:
    """A call under way, and afterwards what came of it."""

    process: "subprocess.Popen[str]"
    told: dict[str, object] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Is it still going on?"""
        return self.process.poll() is None

    def cut(self) -> float:
        """Wait until it is cut off by a reset; gives the time since the epoch."""
        stdout, stderr = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, stderr
        self.told = json.loads(stdout)
        assert self.told["how"] == "ECONNRESET", self.told
        return float(str(self.told["at"]))


@contextlib.contextmanager
def calling(host: Host, unit: str, to: str, port: int, what: str = "ping", *, beside: int = 0) -> Iterator[Called]:
    """A call of a meshed unit (or, without one, of a plain process) that goes on until it is cut off."""
    command = ["python3", "-c", CALLER, to, str(port), what, *([str(beside)] if beside else [])]
    if to == "redis":
        _let_in(host, unit)
    with host.popen(["hostmesh", "run", "--unit", unit, "--", *command] if unit else command) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said == "open\n", (said, process.stderr and process.stderr.read())
            yield Called(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # `hostmesh run` passes it on
                process.communicate(timeout=10)


def _let_in(host: Host, unit: str) -> None:
    """Wait until the policies that are there are in force, and let the unit call redis."""
    ping = ["hostmesh", "run", "--unit", unit, "--", "redis-cli", "-h", "redis", "ping"]
    wait_until(lambda: host.exec(ping).stdout == "PONG\n", f"{unit} may call redis", 10.0, 0.1)


def denied(host: Host, rule: str) -> float:
    """The count of a rule's refusals in /metrics."""
    return total(host, "hostmesh_denied_total", rule=rule)


def _turns(w: World, call: Called, host: Host, unit: str, text: str, *, why: str) -> str:
    """The policy of a unit turns against a call: reset in time, told in the journal and in /metrics."""
    rule = f"{POLICIES}/{unit}.toml:{why}"
    before, cursor = denied(host, rule), host.journal_cursor()
    with w.changed_policy(host, unit, text):
        published = time.time()
        seconds = call.cut() - published
        line = w.denials(host, after=cursor, HOSTMESH_UNIT=unit, HOSTMESH_VERDICT="deny", HOSTMESH_RULE=rule)[0]
        count = wait_until(lambda: denied(host, rule) - before, "/metrics counts it", 5.0, 0.1)
    assert "and is ended" in str(line["MESSAGE"]), line
    assert count == 1, count
    assert seconds < AT_ONCE, f"cut off only after {seconds:.3f} s"
    return f"{1000 * seconds:.0f} ms after the file; {line['MESSAGE']}"


def over_the_wire(w: World) -> str:
    """TCP between hosts, denied by the callee: both sides tell; the other caller's connection loses no byte"""
    both = w.policy(REDIS).replace('["shop"]', '["shop", "guest"]')
    with (
        w.changed_policy(w.h2, REDIS, both),
        calling(w.h1, "shop", "redis", 6379) as call,
        calling(w.h1, "guest", "redis", 6379) as other,
    ):
        cursor = w.h1.journal_cursor()
        only_guest = both.replace('"shop", ', "")
        said = _turns(w, call, w.h2, REDIS, only_guest, why="no-allow")
        told = w.denials(w.h1, after=cursor, HOSTMESH_UNIT="shop.service", HOSTMESH_KIND="connection")[0]
        assert "refused by the other side's policy" in str(told["MESSAGE"]), told
        assert other.is_open, "an allowed connection was ended"
        nobody = both.replace('from = ["shop", "guest"]', 'from = ["nobody"]')
        _turns(w, other, w.h2, REDIS, nobody, why="no-allow")
    return f"{said}; {other.told['passed']} answers for the other, each whole"


def by_the_caller(w: World) -> str:
    """TCP between hosts, denied by the caller's own [outbound]"""
    text = w.policy("shop.service").replace('"redis", ', "")
    with calling(w.h1, "shop", "redis", 6379) as call:
        return _turns(w, call, w.h1, "shop.service", text, why="no-outbound")


def streaming(w: World) -> str:
    """HTTP between hosts, a response under way: broken off, never made to look whole"""
    w.h2.exec(["truncate", "-s", "4G", "/var/www/html/endless"]).must()
    try:
        with calling(w.h1, "shop", "web", 80, "stream") as call:
            text = w.policy(NGINX).replace('"orders", "shop"', '"orders"')
            return _turns(w, call, w.h2, NGINX, text, why="no-allow")
    finally:
        w.h2.exec(["rm", "/var/www/html/endless"]).must()


def on_one_host(w: World) -> str:
    """Two units of one host: one pass, the callee's policy turns"""
    both = w.policy(REDIS).replace('["shop"]', '["shop", "inventory"]')
    with w.changed_policy(w.h2, REDIS, both), calling(w.h2, "inventory", "redis", 6379) as call:
        return _turns(w, call, w.h2, REDIS, w.policy(REDIS), why="no-allow")


def in_plain_text(w: World) -> str:
    """A caller without identity, from another host"""
    named = w.policy(REDIS) + f'\n[[inbound.plaintext]]\nfrom = ["{SCRAPER}/32"]\nports = [6379]\n'
    with w.changed_policy(w.h2, REDIS, named):
        wait_until(lambda: w.outsider.exec(["nc", "-z", "-w1", w.h2.ipv4, "6379"]).ok, "the outsider is let in", 5.0)
        with calling(w.outsider, "", w.h2.ipv4, 6379) as call:
            return _turns(w, call, w.h2, REDIS, w.policy(REDIS), why="no-plaintext")


def passed_through(w: World) -> str:
    """A connection to what is no service of the mesh, denied by the caller's own [outbound]"""
    with w.outsider.unit(["/usr/bin/python3", "-c", PONG]):
        w.outsider.wait_port(9000)
        with calling(w.h1, "guest", w.outsider.ipv4, 9000) as call:
            text = w.policy("guest.service") + '\n[outbound]\nallow = ["web"]\n'
            return _turns(w, call, w.h1, "guest.service", text, why="no-outbound")


def taken_away(w: World) -> str:
    """The policy file of the called unit is gone: nobody is let in any more, open connections neither"""
    path, cursor = f"{POLICIES}/{REDIS}.toml", w.h2.journal_cursor()
    with calling(w.h1, "shop", "redis", 6379) as call:
        w.h2.exec(["mv", path, f"{path}.away"]).must()
        began = time.time()
        try:
            seconds = call.cut() - began
            line = w.denials(w.h2, after=cursor, HOSTMESH_UNIT=REDIS, HOSTMESH_RULE="builtin:unknown-unit")[0]
        finally:
            w.h2.exec(["mv", f"{path}.away", path]).must()
    _let_in(w.h1, "shop")
    assert seconds < AT_ONCE, seconds
    return f"{1000 * seconds:.0f} ms after the file; {line['MESSAGE']}"


def audit_ends(w: World) -> str:
    """From audit to enforce: what audit had let pass is ended"""
    audit = '[inbound]\nmode = "audit"\n\n' + w.policy(REDIS)
    with w.changed_policy(w.h2, REDIS, audit), calling(w.h1, "guest", "redis", 6379) as call:
        return _turns(w, call, w.h2, REDIS, audit.replace('"audit"', '"enforce"'), why="no-allow")


def busy(host: Host) -> float:
    """Seconds of CPU that the proxy's workers have taken."""
    script = "for t in /proc/$0/task/*; do grep -q worker $t/comm && cat $t/schedstat; done; true"
    rows = host.exec(["sh", "-c", script, str(host.main_pid("hostmesh-proxy.service"))]).must().stdout.splitlines()
    return sum(int(row.split()[0]) for row in rows) / 1e9


def many(w: World, connections: int) -> str:
    """Thousands of open connections: judged again in no time that their traffic would notice, ended all at once"""
    text, cursor = w.policy(REDIS).replace('["shop"]', '["shop", "guest"]'), w.h2.journal_cursor()
    with calling(w.h1, "shop", "redis", 6379, beside=connections) as call:
        idle, began = busy(w.h2), time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1, "a second without a change", 2.0, 0.1)
        per_second = busy(w.h2) - idle
        with w.changed_policy(w.h2, REDIS, text):
            wait_until(lambda: w.guest("redis-cli", "-h", "redis", "ping").ok, "in force", 5.0, 0.1)
            judged = busy(w.h2) - idle - per_second * (time.monotonic() - began)
            assert call.is_open, "an allowed connection was ended"
            nobody = w.policy(REDIS).replace('["shop"]', '["nobody"]')
            with w.changed_policy(w.h2, REDIS, nobody):
                published = time.time()
                seconds = call.cut() - published
    assert call.told["beside"] == connections, call.told
    in_journal(w.h2, cursor, "lines of kind 'denied' suppressed")  # and from now on they are written again
    assert seconds < AT_ONCE, seconds
    return (
        f"{connections} judged again: {1000 * max(judged, 0):.0f} ms of CPU, slowest answer beside it "
        f"{call.told['slowest']} s; all ended, the last asked {1000 * seconds:.0f} ms after the file"
    )
