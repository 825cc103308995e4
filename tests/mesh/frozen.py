"""What must be shown of processes that are frozen, and of a dead journald: told, traffic goes on, all come back."""

import contextlib
import time
from collections.abc import Iterator

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import told
from tests.mesh.scarcity import AGENT, PROXY
from tests.mesh.survival import kill, load
from tests.mesh.world import World

CONTROLLER, JOURNALD = "hostmesh-controller.service", "systemd-journald.service"
JOURNAL_SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
SAYS_LOST = "lines are lost: journald did not take them"
FILL = """
import socket
for _ in range(8):  # a sender's own buffer is smaller than the queue
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as speaker:
        speaker.connect("/run/systemd/journal/socket")
        try:
            while speaker.send(b"MESSAGE=one of many\\n"): pass
        except BlockingIOError: pass
"""


@contextlib.contextmanager
def frozen(host: Host, unit: str) -> Iterator[int]:
    """The unit's main process is stopped (SIGSTOP) for the length of a ``with``, if it lives so long."""
    pid = host.main_pid(unit)
    assert pid, f"{unit} isn't running"
    host.exec(["kill", "-STOP", str(pid)]).must()
    try:
        yield pid
    finally:
        host.exec(["kill", "-CONT", str(pid)])


def control(w: World, *, to_the_end: bool) -> str:
    """Agent and controller frozen: told on their host and on the others, no request fails; watchdogs bring them back

    `to_the_end`: until their watchdogs have ended them; else they go on once the others have noticed.
    """
    cursors = {host.name: host.journal_cursor() for host in (w.h1, w.h2)}
    with load(w, least=0, connections=2) as running:
        with frozen(w.h2, AGENT) as agent, frozen(w.h2, CONTROLLER) as controller:
            began = time.monotonic()
            asked = w.h2.exec(["hostmesh", "status"])
            assert asked.exit == 1 and "the agent does not answer" in asked.stderr, asked
            assert "what is in force stays in force without it" in asked.stderr, asked
            said = told.in_journal(w.h1, cursors["h1"], "controller: ", "traffic goes on", timeout=26.0)
            noticed = time.monotonic() - began
            for unit, pid in ((AGENT, agent), (CONTROLLER, controller)) if to_the_end else ():
                w.h2.wait_another_process(unit, pid, 40.0)
                told.in_journal(w.h2, cursors["h2"], f"{unit}: Watchdog timeout")
            seconds = time.monotonic() - began
        told.in_journal(w.h1, cursors["h1"], "controller: well again")
        wait_until(lambda: w.status(w.h2)["controller"]["connected"], "h2 has its controller", 20.0, 0.1)
    assert running.number("failed") == 0, running.told
    assert noticed < 26.0, f"{noticed:.0f} s: its watchdog was quicker than the keepalive"
    back = f"both back after {seconds:.0f} s by their watchdogs" if to_the_end else "both went on"
    return f"noticed by h1 after {noticed:.0f} s, {back}; 0 of {running.told['requests']} requests failed; {said}"


def proxy(w: World) -> str:
    """A frozen proxy: its watchdog ends it within 10 s, it comes back, told; nothing is in plain text meanwhile"""
    cursor, marker, before = w.h2.journal_cursor(), f"confidential-{time.monotonic_ns()}", w.serials(w.h2)
    with w.lab.capture("tcp or udp") as wire, load(w, least=0, connections=2, path=f"/?{marker}") as running:
        with frozen(w.h2, PROXY) as pid:
            began = time.monotonic()
            w.h2.wait_another_process(PROXY, pid, 15.0)
            seconds = time.monotonic() - began
        wait_until(lambda: w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "web answers", 15.0, 0.1)
    said = told.in_journal(w.h2, cursor, f"{PROXY}: Watchdog timeout")
    wait_until(lambda: w.serials(w.h2) == before, "the same serials", 10.0, 0.1)
    assert running.number("longest_gap") < seconds + 3.0, running.told
    assert not wire.contains(marker.encode())
    return f"another after {seconds:.1f} s; longest gap {running.told['longest_gap']} s; {said}"


@contextlib.contextmanager
def journald_dead(host: Host) -> Iterator[None]:
    """No journald, and no socket that would start it, for the length of a ``with``."""
    host.systemctl("stop", *JOURNAL_SOCKETS, JOURNALD)
    try:
        yield
    finally:
        host.systemctl("start", *JOURNAL_SOCKETS, JOURNALD)
        host.systemctl("try-restart", "inventory.service")  # it prints: what it prints to is gone (EPIPE)


def journald(w: World) -> str:
    """journald frozen with a full queue, then dead: nobody waits for it or falls; lost lines are counted and told"""
    said = []
    for trouble, fill in ((frozen(w.h2, JOURNALD), True), (journald_dead(w.h2), False)):
        cursor = w.h2.journal_cursor()
        with load(w, least=0, connections=2) as running:
            with trouble:
                if fill:
                    w.h2.exec(["python3", "-c", FILL]).must()
                began = time.monotonic()
                for unit in (AGENT, PROXY):
                    pid = w.h2.main_pid(unit)
                    kill(w.h2, unit)
                    w.h2.wait_another_process(unit, pid, 5.0)
                wait_until(lambda: w.h2.exec(["hostmesh", "status"]).ok, "the agent answers", 10.0, 0.1)
                wait_until(lambda: w.status(w.h2)["proxy"]["connected"], "the proxy answers it", 10.0, 0.1)
                seconds = time.monotonic() - began
                assert not w.guest("curl", "-sSf", "-o", "/dev/null", "http://web/").ok  # a refusal, to be written
                told.wait_above(w.h2, "hostmesh_agent_journal_lost_total", 0)
            said.append(f"{told.in_journal(w.h2, cursor, SAYS_LOST)}, both back in {seconds:.1f} s")
        assert running.number("longest_gap") < 3.0, running.told
        assert seconds < 10.0, seconds
    return "; ".join(said)
