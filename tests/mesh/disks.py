"""What must be shown of disks that are full or read-only: told with the remedy, traffic goes on, nothing is lost.

Each folder of h2 in which hostmesh keeps something is a small file system of its own here. While it takes no writes,
policy changes, a unit is new, an identity is signed; afterwards everything is on disk, whole.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import told
from tests.mesh.survival import load
from tests.mesh.world import POLICIES, World

AGENT, PROXY, CONTROLLER, ETC = (
    "/var/lib/hostmesh",
    "/var/lib/hostmesh-proxy",
    "/var/lib/hostmesh-controller",
    "/etc/hostmesh",
)
FOLDERS = (AGENT, PROXY, CONTROLLER, ETC)
DAEMONS = ("hostmeshd.service", "hostmesh-controller.service", "hostmesh-proxy.service")
FULL, READ_ONLY = "No space left on device", "Read-only file system"
NEW = "newcomer-{}.service"  # units that have no policy before the trouble


@contextlib.contextmanager
def small_disks(w: World) -> Iterator[None]:
    """h2's folders as file systems of 2 MB each, for the length of a ``with``; what is on them then stays."""
    host = w.h2
    w.h2.exec(["hostmesh", "controller", "grant", "h2", NEW.format("*")]).must()
    with _stopped(host):
        for folder in FOLDERS:
            _sh(host, f"mkdir /run/copy && cp -a {folder}/. /run/copy && mount -t tmpfs -o size=2m small {folder}")
            _sh(host, f"chown --reference=/run/copy {folder}; chmod --reference=/run/copy {folder}")
            _sh(host, f"cp -a /run/copy/. {folder} && rm -r /run/copy")
    try:
        _settled(w)
        yield
    finally:
        with _stopped(host):
            for folder in FOLDERS:
                _sh(
                    host,
                    f"cp -a {folder}/. /run/copy && umount {folder} && cp -a /run/copy/. {folder} && rm -r /run/copy",
                )
        _settled(w)


@contextlib.contextmanager
def _stopped(host: Host) -> Iterator[None]:
    for unit in DAEMONS:
        host.systemctl("stop", unit)
    try:
        yield
    finally:
        for unit in reversed(DAEMONS):
            host.systemctl("start", unit)


def _sh(host: Host, script: str) -> str:
    return host.exec(["sh", "-euc", script]).must().stdout


def _settled(w: World) -> None:
    """Everything of h2 is up, with identities, and called with success."""
    wait_until(lambda: w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "web answers", 20.0, 0.1)
    wait_until(lambda: all(unit["svid"] for unit in w.status(w.h2)["units"]), "h2 has all identities", 20.0, 0.1)
    wait_until(lambda: w.status(w.h2)["controller"]["connected"], "h2 has its controller", 20.0, 0.1)


@dataclass(frozen=True)
class Trouble:
    """A way in which a folder takes no writes; ``says`` is the kernel's word for it."""

    name: str
    says: str
    begin: str
    end: str


TROUBLES = (
    Trouble("full", FULL, "cat /dev/zero > {folder}/.fill 2>/dev/null || true", "rm -f {folder}/.fill"),
    Trouble("read-only", READ_ONLY, "mount -o remount,ro {folder}", "mount -o remount,rw {folder}"),
)


@contextlib.contextmanager
def taking_no_writes(host: Host, folder: str, trouble: Trouble) -> Iterator[None]:
    """The folder's disk is full, or read-only, for the length of a ``with``."""
    _sh(host, trouble.begin.format(folder=folder))
    try:
        yield
    finally:
        _sh(host, trouble.end.format(folder=folder))


def _attempts(w: World) -> int:
    return int(w.services(w.h1)["inventory"]["traffic"]["retries"]["attempts"])


@contextlib.contextmanager
def _policy_in_force(w: World) -> Iterator[None]:
    """Another policy of inventory, which h1 hears of: it is in force in spite of the trouble."""
    with w.changed_policy(
        w.h2, "inventory.service", w.policy("inventory.service").replace("attempts = 3", "attempts = 5")
    ):
        wait_until(lambda: _attempts(w) == 5, "h1 has the changed policy", 10.0, 0.05)
        yield
    wait_until(lambda: _attempts(w) == 3, "h1 has the policy of before", 10.0, 0.05)


@contextlib.contextmanager
def _newcomer(w: World, unit: str) -> Iterator[None]:
    """A new unit's policy on h2, for the length of a ``with``."""
    w.write_policy(w.h2, unit, "# calls others only\n")
    try:
        yield
    finally:
        w.h2.exec(["rm", f"{POLICIES}/{unit}.toml"]).must()


def agents_disk(w: World, trouble: Trouble) -> str:
    """/var/lib/hostmesh: a changed policy is in force; a new unit waits, told with the remedy; then all is kept"""
    cursor, unit = w.h2.journal_cursor(), NEW.format(trouble.name)
    with load(w, least=0, connections=2) as running:
        with contextlib.ExitStack() as there:
            with taking_no_writes(w.h2, AGENT, trouble):
                there.enter_context(_newcomer(w, unit))
                said = told.in_status(w, w.h2, f"{AGENT}/numbers.json", trouble.says, _remedy(trouble))
                told.in_journal(w.h2, cursor, "apply: ", trouble.says)
                told.wait_metric(w.h2, "hostmesh_agent_apply_failures", 1)
            wait_until(lambda: unit in w.serials(w.h2), "the new unit has its identity", 30.0, 0.1)
            told.wait_metric(w.h2, "hostmesh_agent_apply_failures", 0)
        with taking_no_writes(w.h2, AGENT, trouble), _policy_in_force(w):
            told.in_journal(w.h2, cursor, "the controller's last word is not kept on disk", trouble.says)
        told.in_journal(w.h2, cursor, "the controller's last word is not kept on disk: well again")
    kept = json.loads(w.h2.read(f"{AGENT}/catalog.json"))
    assert [s["traffic"]["retries"]["attempts"] for s in kept["services"] if s["name"] == "inventory"] == [3]
    assert unit in json.loads(w.h2.read(f"{AGENT}/numbers.json"))["numbers"]
    _no_leftovers(w.h2, AGENT)
    assert running.number("failed") == 0, running.told
    return said


def proxys_disk(w: World, trouble: Trouble) -> str:
    """/var/lib/hostmesh-proxy: a changed policy is in force, told that a restart would lose it, and kept afterwards"""
    cursor = w.h2.journal_cursor()
    with load(w, least=0, connections=2) as running, contextlib.ExitStack() as changed:
        with taking_no_writes(w.h2, PROXY, trouble):
            changed.enter_context(_policy_in_force(w))
            not_kept = "proxy: the policy in force is not on disk"
            said = told.in_status(w, w.h2, not_kept, trouble.says, f"df {PROXY}")
            told.in_journal(w.h2, cursor, "the policy in force is not on disk", trouble.says)
            told.wait_metric(w.h2, "hostmesh_proxy_troubles", 1)
            assert '"attempts":5' not in w.h2.read(f"{PROXY}/snapshot.json")
            if trouble.says == FULL:  # one that starts on a mount that is read-only keeps that in its namespace
                w.h2.systemctl("reload", "hostmesh-proxy.service")
                told.in_status(w, w.h2, not_kept)
        told.not_in_status(w, w.h2, "not on disk")
        told.wait_metric(w.h2, "hostmesh_proxy_troubles", 0)
        assert json.loads(w.h2.read(f"{PROXY}/snapshot.json"))["revision"] == w.status(w.h2)["revision"]
    _no_leftovers(w.h2, PROXY)
    assert running.number("failed") == 0, running.told
    with taking_no_writes(w.h2, PROXY, trouble):
        w.h2.systemctl("restart", "hostmesh-proxy.service")
        assert w.shop("curl", "-sSf", "-o", "/dev/null", "http://web/").ok, "no start on such a disk"
    return said


def controllers_disk(w: World, trouble: Trouble) -> str:
    """/var/lib/hostmesh-controller: units are signed for; news wait, told with the remedy; then they come"""
    cursor = w.h2.journal_cursor()
    with load(w, least=0, connections=2) as running:
        with _broken_store(w, trouble):
            text = w.policy("inventory.service").replace("attempts = 3", "attempts = 4")
            w.write_policy(w.h2, "inventory.service", text)
            refused = w.h2.exec(["hostmesh", "controller", "token", "h9", "--unit", "x.service"])
            assert refused.exit == 1 and "Traceback" not in refused.stderr and f"df {CONTROLLER}" in refused.stderr, (
                refused
            )
            said = told.in_journal(w.h2, cursor, "the store", CONTROLLER, "df ")
        wait_until(lambda: _attempts(w) == 4, "the news came", 20.0, 0.1)
        w.write_policy(w.h2, "inventory.service", w.policy("inventory.service"))
        wait_until(lambda: _attempts(w) == 3, "the policy of before is back", 20.0, 0.1)
    assert running.number("failed") == 0, running.told
    assert w.h2.exec(["sqlite3", f"{CONTROLLER}/controller.db", "pragma integrity_check"]).stdout in ("ok\n", "")
    return said


@contextlib.contextmanager
def _broken_store(w: World, trouble: Trouble) -> Iterator[None]:
    """A full disk comes while the controller runs; one that is read-only it finds at its start."""
    if trouble.says == FULL:
        with taking_no_writes(w.h2, CONTROLLER, trouble), _newcomer(w, NEW.format("signed")):
            signed = NEW.format("signed")
            wait_until(lambda: signed in w.serials(w.h2), "a new unit is signed for", 20.0, 0.1)
            yield
        return
    w.h2.systemctl("stop", "hostmesh-controller.service")
    with taking_no_writes(w.h2, CONTROLLER, trouble):
        w.h2.exec(["systemctl", "start", "--no-block", "hostmesh-controller.service"]).must()
        told.in_status(w, w.h1, "UNAVAILABLE")
        yield
    wait_until(lambda: w.h2.main_pid("hostmesh-controller.service"), "the controller is back", 20.0, 0.1)


def policies_disk(w: World, trouble: Trouble) -> str:
    """/etc/hostmesh: what was cut off while it was written changes nothing; verbs say what helps"""
    place = f"{POLICIES}/inventory.service.toml"
    kept = w.changed_policy(w.h2, "inventory.service", w.policy("inventory.service"))
    with load(w, least=0, connections=2) as running, kept:
        with taking_no_writes(w.h2, ETC, trouble):
            verb = w.h2.exec(["hostmesh", "run", "--create", "--unit", NEW.format("run"), "--", "true"])
            assert verb.exit == 1 and "Traceback" not in verb.stderr, verb
            assert trouble.says in verb.stderr and _remedy(trouble) in verb.stderr, verb.stderr
            # what an editor or cp(1) does; on a full disk the old text is gone, and of the new one nothing there
            cut = w.h2.exec(
                ["sh", "-c", f"exec 3> {place} && cat /dev/zero > {ETC}/.fill2; cat >&3"], input="[service]"
            )
            assert not cut.ok
            if trouble.says == FULL:
                said = told.in_status(w, w.h2, "the file is empty", "is the disk full?")
                told.wait_metric(w.h2, "hostmesh_agent_policy_errors", 1)
            assert w.h1.exec(["curl", "-sSf", "-o", "/dev/null", "http://127.0.0.1:8081/orders/7"]).ok
        w.h2.exec(["rm", "-f", f"{ETC}/.fill2"]).must()
        w.write_policy(w.h2, "inventory.service", w.policy("inventory.service"))
        wait_until(lambda: not w.status(w.h2)["findings"], "well again", 10.0, 0.1)
    assert running.number("failed") == 0, running.told
    _no_leftovers(w.h2, ETC)
    return said if trouble.says == FULL else verb.stderr.strip()


def _remedy(trouble: Trouble) -> str:
    return "free some space" if trouble.says == FULL else "remount,rw"


def _no_leftovers(host: Host, folder: str) -> None:
    """No half-written file stays behind."""
    left = _sh(host, f"find {folder} -name '.*' -type f -o -name '*.new' -o -name '*.tmp'").split()
    assert left == [], left


SHOWS: tuple[Callable[[World, Trouble], str], ...] = (agents_disk, proxys_disk, controllers_disk, policies_disk)
