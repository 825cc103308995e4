"""The agent on a real systemd host: follows files, units and the kernel, repairs, refuses what is wrong, survives.

No proxy is needed for any of it: the unit's ports are shut by the kernel.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostmesh.wire import agent_control as wire
from tests.host.agent_socket import ask, status, unit_status, wait_active
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.lab

POLICIES = "/etc/hostmesh/policies"
FILE = f"{POLICIES}/web.service.toml"
DROPIN = "/etc/systemd/system/web.service.d/50-hostmesh.conf"
POLICY = """[service]
name = "web"
[service.ports]
8080 = "http"

[[inbound.allow]]
from = ["orders"]
"""
UNIT = """[Service]
Type=exec
ExecStart=/usr/bin/python3 -u -m http.server 8080 --bind ::
DynamicUser=yes
"""


@pytest.fixture(scope="module")
def hosts(hostmesh_wheels: Path) -> Iterator[Lab]:
    """h1 with the agent running and one unit that has a policy; h2 is a stranger."""
    with Lab(("h1", "h2"), layers=[hostmesh_wheels]) as lab:
        h1 = lab["h1"]
        h1.write("/etc/systemd/system/web.service", UNIT)
        h1.systemctl("daemon-reload")
        h1.systemctl("start", "web.service")
        h1.wait_port(8080)
        h1.write(FILE, POLICY)
        h1.systemctl("start", "hostmeshd.service")
        yield lab


@pytest.fixture(scope="module")
def h1(hosts: Lab) -> Host:
    return hosts["h1"]


@pytest.fixture(scope="module")
def h2(hosts: Lab) -> Host:
    return hosts["h2"]


@pytest.fixture
def policy_back(h1: Host) -> Iterator[None]:
    """Afterwards the policy is as it was, and in force."""
    yield
    save(h1, FILE, POLICY)
    wait_until(lambda: callers(h1) == ["spiffe://mesh.local/unit/orders"], "the first policy is back")
    wait_until(lambda: not status(h1).findings, "and nothing is wrong with it")


def save(host: Host, path: str, text: str) -> None:
    """Write beside and rename, as Ansible does."""
    host.write(f"{path}.new", text)
    host.exec(["mv", f"{path}.new", path]).must()


def ruleset(host: Host) -> str:
    """Our table without what counts and what was learnt from packets."""
    text = host.exec(["nft", "list", "table", "inet", "hostmesh"]).must().stdout
    return re.sub(r"counter packets \d+ bytes \d+|expires \w+", "", text)


def meshed(host: Host) -> bool:
    """Does the kernel hold the unit's element?"""
    listed = host.exec(["nft", "list", "set", "inet", "hostmesh", "meshed"])
    return listed.ok and "mesh-web.slice" in listed.stdout


def test_a_unit_comes_into_its_slice_by_a_restart_and_status_knows(h1: Host) -> None:
    assert meshed(h1)
    before = unit_status(h1, "web.service")
    assert before
    assert (before.state, before.number, before.mode) == ("active", 1, "enforce")
    assert before.outside == "its processes are from before: systemctl restart web.service"
    assert outside(h1) == (1, [f"NOT MESHED, no policy holds: {before.outside}"])
    h1.systemctl("restart", "web.service")

    def there() -> wire.UnitStatus | None:
        now = unit_status(h1, "web.service")
        return now if now and now.in_slice and now.ports[0].listening else None

    wait_until(there, "the unit is in its slice and seen to listen", 5.0)
    cgroup = h1.read(f"/proc/{h1.main_pid('web.service')}/cgroup")
    assert "/mesh.slice/mesh-web.slice/web.service" in cgroup


def test_a_unit_that_somebody_moves_out_of_its_slice_is_loudly_not_meshed(h1: Host) -> None:
    theirs, local = "/etc/systemd/system/web.service.d/90-theirs.conf", ["curl", "-sf", "http://127.0.0.1:8080/"]

    def why(begin: str) -> str | None:
        found = unit_status(h1, "web.service")
        return found.outside if found and found.outside.startswith(begin) else None

    cursor = h1.journal_cursor()
    h1.write(theirs, "[Service]\nSlice=other.slice\n")
    h1.systemctl("daemon-reload")
    h1.systemctl("restart", "web.service")
    setting = wait_until(lambda: why("its Slice= is other.slice: remove"), "it is told", 5.0)
    h1.wait_port(8080)
    assert h1.exec(local).ok, "plain text from this host reaches it: what is told is true"
    ask(h1, wire.Reconcile(1), wire.Done)
    assert outside(h1, cursor) == (1, [f"NOT MESHED, no policy holds: {setting}"]), "once"
    told = h1.exec(["hostmesh", "status"]).must().stdout
    assert f"NOT MESHED: web.service runs without its policy: {setting}" in told
    assert re.search(r"^web.service .*NOT IN FORCE.* NOT MESHED ", told, re.MULTILINE), told
    h1.exec(["rm", theirs]).must()
    h1.systemctl("daemon-reload")
    before = wait_until(lambda: why("its processes are from before"), "the other remedy", 5.0)
    ask(h1, wire.Reconcile(2), wire.Done)
    assert outside(h1, cursor) == (1, [f"NOT MESHED, no policy holds: {text}" for text in (setting, before)])
    h1.systemctl("restart", "web.service")
    wait_until(lambda: unit_status(h1, "web.service").in_slice, "it is back", 5.0)
    assert outside(h1, h1.journal_cursor()) == (0, [])
    assert "NOT MESHED" not in h1.exec(["hostmesh", "status"]).must().stdout


def test_units_are_followed_by_signals(h1: Host) -> None:
    """Well before the next tick of 30 seconds; stop and start in a row end in the state that is true."""
    for verb, state in (("stop", "inactive"), ("start", "active"), ("restart", "active")):
        h1.systemctl(verb, "web.service")
        wait_until(lambda state=state: unit_status(h1, "web.service").state == state, f"{verb} is seen", 3.0)


def test_a_crash_is_seen(h1: Host) -> None:
    h1.exec(["systemctl", "kill", "--signal=KILL", "web.service"]).must()
    wait_until(lambda: unit_status(h1, "web.service").state == "failed", "the crash is seen", 3.0)
    h1.systemctl("reset-failed", "web.service")
    h1.systemctl("start", "web.service")
    wait_until(lambda: unit_status(h1, "web.service").ports[0].listening, "it listens again", 5.0)


def test_a_changed_policy_is_in_force_within_a_second(h1: Host, policy_back: None) -> None:
    began = time.monotonic()
    save(h1, FILE, POLICY.replace('"orders"', '"shop"'))
    shop = ["spiffe://mesh.local/unit/shop"]
    wait_until(lambda: callers(h1) == shop, "the new plan is in force", 5.0, 0.005)
    assert time.monotonic() - began < 1.0


def test_a_wrong_file_changes_nothing_and_says_where(h1: Host, policy_back: None) -> None:
    before, rules = callers(h1), ruleset(h1)
    cursor = h1.journal_cursor()
    save(h1, FILE, POLICY.replace("allow]]", "alow]]"))
    found = wait_until(lambda: status(h1).findings, "the error is told", 5.0)
    assert [(f.file, f.line, f.column, f.code) for f in found] == [(FILE, 6, 1, "unknown-key")]
    assert "allow" in found[0].hint
    assert callers(h1) == before == ["spiffe://mesh.local/unit/orders"]
    assert ruleset(h1) == rules
    (line,) = [e for e in h1.journal(after=cursor, SYSLOG_IDENTIFIER="hostmesh") if "refused" in e["MESSAGE"]]
    assert f"{FILE}:6:1" in line["MESSAGE"]


def test_a_wrong_file_does_not_stop_the_kernel_from_being_repaired(h1: Host, policy_back: None) -> None:
    save(h1, FILE, "not toml")
    wait_until(lambda: status(h1).findings, "the error is told", 5.0)
    h1.exec(["nft", "flush", "ruleset"]).must()
    wait_until(lambda: meshed(h1), "the ruleset of before is back", 2.0)


def test_a_foreign_flush_is_repaired_at_once(h1: Host) -> None:
    h1.exec(["nft", "add", "table", "inet", "somebody"]).must()
    rules = ruleset(h1)
    began = time.monotonic()
    h1.exec(["nft", "flush", "ruleset"]).must()
    wait_until(lambda: meshed(h1), "the ruleset is back", 2.0)
    assert time.monotonic() - began < 1.0
    assert ruleset(h1) == rules


def test_its_nice_counts_beside_other_services(h1: Host) -> None:
    pid, groups = h1.main_pid("hostmeshd.service"), h1.exists("/proc/self/autogroup")
    said = h1.exec(["cat", f"/proc/{pid}/autogroup"])
    assert said.stdout.endswith("nice -10\n") if groups else not said.ok, said


def test_what_others_do_in_their_tables_wakes_nobody(h1: Host) -> None:
    before = runs(h1)
    for _ in range(20):
        h1.exec(["nft", "add", "table", "inet", "somebody"]).must()
        h1.exec(["nft", "delete", "table", "inet", "somebody"]).must()
    assert runs(h1) - before <= 3  # a run that was under way, its echo and the 30 s timer may fall in here


def test_a_lost_rule_and_route_come_back(h1: Host) -> None:
    h1.exec(["ip", "rule", "del", "pref", "7300"]).must()
    wait_until(lambda: "7300:" in h1.exec(["ip", "rule"]).must().stdout, "the rule is back", 2.0)
    h1.exec(["ip", "route", "flush", "table", "7300"]).must()
    wait_until(lambda: "lo" in h1.exec(["ip", "route", "show", "table", "7300"]).stdout, "the route is back", 2.0)


def test_the_kernels_refusals_are_in_the_units_journal_and_counted(h1: Host, h2: Host) -> None:
    h1.systemctl("restart", "web.service")
    listening = ["ss", "--no-header", "--listening", "--tcp", "sport = :8080"]
    wait_until(lambda: h1.exec(listening).must().stdout, "it listens, in its slice", 5.0)
    rule, cursor, before = f"{FILE}:no-plaintext", h1.journal_cursor(), refused(h1)
    for address in (h1.ipv4, f"[{h1.ipv6}]"):
        tried = h2.exec(["curl", "--silent", "--show-error", "--max-time", "5", f"http://{address}:8080/"])
        assert tried.exit == 7, "refused at once, not by time-out"
    assert h1.exec(["curl", "--silent", "--max-time", "5", "http://127.0.0.1:8080/"]).exit == 7

    def lines() -> list[dict[str, str]] | None:
        found = h1.journal(unit="web.service", after=cursor, HOSTMESH_RULE=rule)
        return found if len(found) >= 3 else None

    clients = {line["HOSTMESH_CLIENT"] for line in wait_until(lines, "three lines", 5.0, 0.05)}
    assert clients == {h2.ipv4, h2.ipv6, "127.0.0.1"}
    assert refused(h1) - before == len(lines() or [])


def test_a_restarted_bus_is_taken_up_again(h1: Host) -> None:
    pid = h1.main_pid("hostmeshd.service")
    h1.systemctl("restart", "dbus.service")
    for verb, state in (("stop", "inactive"), ("start", "active")):
        h1.systemctl(verb, "web.service")
        wait_until(lambda state=state: unit_status(h1, "web.service").state == state, f"{verb} is seen", 10.0)
    wait_until(lambda: not status(h1).failures, "nothing fails", 10.0)
    assert h1.main_pid("hostmeshd.service") == pid


def test_killed_agent_leaves_everything_in_force_and_comes_back(h1: Host) -> None:
    wait_until(lambda: unit_status(h1, "web.service").ports[0].listening, "what was begun before is done", 5.0)
    ask(h1, wire.Reconcile(1), wire.Done)
    rules, pid, cursor = ruleset(h1), h1.main_pid("hostmeshd.service"), h1.journal_cursor()
    h1.exec(["systemctl", "kill", "--signal=KILL", "hostmeshd.service"]).must()
    assert ruleset(h1) == rules
    h1.wait_another_process("hostmeshd.service", pid)
    wait_active(h1)
    assert ruleset(h1) == rules
    done = [e["MESSAGE"] for e in h1.journal(after=cursor, SYSLOG_IDENTIFIER="hostmesh")]
    assert not [text for text in done if text.startswith("in force")], "there was nothing to do"
    assert unit_status(h1, "web.service").number == 1


def test_stopped_agent_leaves_everything_in_force(h1: Host) -> None:
    rules = ruleset(h1)
    h1.systemctl("stop", "hostmeshd.service")
    assert ruleset(h1) == rules
    assert "lo" in h1.exec(["ip", "route", "show", "table", "7300"]).must().stdout
    assert h1.exists(DROPIN)
    h1.systemctl("start", "hostmeshd.service")
    assert ruleset(h1) == rules


def test_other_settings_are_taken_without_a_restart(h1: Host) -> None:
    pid = h1.main_pid("hostmeshd.service")
    h1.write("/etc/hostmesh/hostmesh.toml", "[ports]\nmetrics = 15021\n")
    wait_until(lambda: h1.exec(["curl", "-sf", "http://127.0.0.1:15021/metrics"]).ok, "metrics on the other port", 10.0)
    h1.write("/etc/hostmesh/hostmesh.toml", "[ports]\nmetrics = 'x'\n")
    h1.systemctl("reload", "hostmeshd.service")
    assert h1.exec(["curl", "-sf", "http://127.0.0.1:15021/metrics"]).ok, "wrong settings: those of before stay"
    h1.exec(["rm", "/etc/hostmesh/hostmesh.toml"]).must()
    wait_until(lambda: h1.exec(["curl", "-sf", "http://127.0.0.1:15020/metrics"]).ok, "metrics where they were", 10.0)
    assert h1.main_pid("hostmeshd.service") == pid


def test_a_start_with_wrong_settings_is_told_once_and_touches_nothing(h1: Host) -> None:
    rules, cursor = ruleset(h1), h1.journal_cursor()
    h1.write("/etc/hostmesh/hostmesh.toml", "[ports]\nmetrics = 'x'\n")
    assert not h1.exec(["systemctl", "restart", "hostmeshd.service"]).ok
    assert h1.exec(["systemctl", "is-failed", "hostmeshd.service"]).must().stdout.strip() == "failed"
    told = [e for e in h1.journal(unit="hostmeshd.service", after=cursor) if "hostmesh.toml:2:" in str(e["MESSAGE"])]
    assert len(told) == 1, told
    assert ruleset(h1) == rules
    h1.exec(["rm", "/etc/hostmesh/hostmesh.toml"]).must()
    h1.systemctl("restart", "hostmeshd.service")


def test_anyone_may_look_only_root_may_change(h1: Host) -> None:
    code = (
        "import socket, sys\n"
        "from hostmesh.wire import agent_control as wire\n"
        "from hostmesh.wire.codec import FrameReader, encode\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('/run/hostmesh/agent.sock')\n"
        "frames = FrameReader(wire.Answer)\n"
        "for request in (wire.GetStatus(1), wire.Reconcile(2)):\n"
        "    s.sendall(encode(request)); got = []\n"
        "    while not got: got = list(frames.feed(s.recv(65536)))\n"
        "    print(type(got[0]).__name__)\n"
    )
    python = "/opt/hostmesh/bin/python"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", code]
    assert h1.exec(nobody).must().stdout.split() == ["Status", "Refused"]
    assert h1.exec([python, "-c", code]).must().stdout.split() == ["Status", "Done"]


def test_a_diff_tells_and_does_nothing(h1: Host) -> None:
    before = status(h1).revision
    text = POLICY.replace('"web"', '"other"').replace("8080", "8081")
    diff = ask(h1, wire.GetDiff(1, {"other.service.toml": text}), wire.Diff)
    names = [name for name, _ in diff.steps]
    assert "write /etc/systemd/system/other.service.d/50-hostmesh.conf" in names
    assert any(name.startswith("ruleset: units +1") for name in names)
    assert ask(h1, wire.GetDiff(2), wire.Diff).steps == []
    assert status(h1).revision == before
    assert not h1.exists("/etc/systemd/system/other.service.d/50-hostmesh.conf")
    wrong = ask(h1, wire.GetDiff(3, {"other.service.toml": "x = 1\n"}), wire.Diff)
    assert [(f.line, f.code) for f in wrong.findings] == [(1, "unknown-key")]


def test_no_policy_no_mesh(h1: Host, policy_back: None) -> None:
    h1.exec(["rm", FILE]).must()
    wait_until(lambda: not h1.exists(DROPIN) and not meshed(h1), "drop-in and element are gone", 3.0)
    assert status(h1).units == []


def callers(host: Host) -> list[str]:
    """Whom the plan in force lets in."""
    units = ask(host, wire.GetPlan(1), wire.PlanInForce).snapshot.units
    return units[0].allow[0].callers if units else []


def refused(host: Host) -> int:
    """Packets to the unit that the kernel refused as plain text, by `/metrics`."""
    wanted = f'hostmesh_kernel_refused_packets_total{{rule="{FILE}:no-plaintext",unit="web.service"}} '
    return next((int(float(line.removeprefix(wanted))) for line in metrics(host) if line.startswith(wanted)), 0)


def outside(host: Host, after: str = "") -> tuple[int, list[str]]:
    """How many units run outside their slices, by `/metrics`; and what the unit's journal says of it."""
    name = "hostmesh_agent_units_outside "
    count = next(int(float(line.removeprefix(name))) for line in metrics(host) if line.startswith(name))
    entries = host.journal(unit="web.service", after=after, SYSLOG_IDENTIFIER="hostmesh")
    return count, [e["MESSAGE"] for e in entries if e["MESSAGE"].startswith("NOT MESHED")]


def runs(host: Host) -> int:
    """How often the loop has run."""
    name = "hostmesh_agent_reconciles_total "
    return next(int(float(line.removeprefix(name))) for line in metrics(host) if line.startswith(name))


def metrics(host: Host) -> list[str]:
    return host.exec(["curl", "-sf", "http://127.0.0.1:15020/metrics"]).must().stdout.splitlines()
