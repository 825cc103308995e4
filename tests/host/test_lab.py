"""The lab itself: what the other tests take for granted of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.host import CommandFailedError, Host
from tests.lab.lab import STATE, Lab, cgroup2_mount, sweep
from tests.lab.waiting import NotInTimeError, wait_until

pytestmark = pytest.mark.lab
SECRET = b"a-word-in-the-clear"


def traces(lab_id: str, namespaces: set[str]) -> dict[str, object]:
    """What is left of a lab on this machine."""
    left: dict[str, object] = {
        "folder": sorted(str(p) for p in (STATE / lab_id).rglob("*")),
        "cgroup": (cgroup2_mount() / lab_id).exists(),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if lab_id in line],
        "links": [line for line in Path("/proc/net/dev").read_text().splitlines() if "h1" in line],
        "namespaces": namespaces & living_network_namespaces(),
    }
    return {what: seen for what, seen in left.items() if seen}


def living_network_namespaces() -> set[str]:
    """The network namespaces that any process is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(os.readlink(process / "ns/net"))  # noqa: PTH115 (not a path: net:[4026531840])
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or guarded from root itself
            continue
    return found


def test_a_host_is_debian_12_with_systemd_running(h1: Host) -> None:
    assert h1.exec(["systemctl", "is-system-running"]).must().stdout == "running\n"
    assert h1.exec(["systemctl", "--version"]).must().stdout.startswith("systemd 252 ")
    assert h1.exec(["cat", "/proc/1/comm"]).must().stdout == "systemd\n"
    assert h1.read("/etc/hostname") == "h1\n"
    assert h1.failed_units() == []


@pytest.mark.parametrize("tool", ["psql", "pgbench", "redis-cli", "redis-benchmark", "curl", "wrk", "nft", "openssl"])
def test_stock_tools_are_there(h1: Host, tool: str) -> None:
    assert h1.exec(["which", tool]).must().stdout.startswith("/usr/")


def test_the_demos_services_find_their_library(h1: Host) -> None:
    assert h1.exec(["/usr/bin/python3", "-c", "import httpx; print(httpx.get.__name__)"]).must().stdout == "get\n"


def test_hosts_are_told_apart(h1: Host, h2: Host) -> None:
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        assert h1.read(path), path
    assert h1.read("/etc/machine-id") != h2.read("/etc/machine-id")
    assert h1.exec(["hostname"]).stdout == "h1\n"
    assert h2.exec(["hostname"]).stdout == "h2\n"


def test_a_unit_runs_in_its_own_cgroup(h1: Host) -> None:
    seen = h1.run_unit(["cat", "/proc/self/cgroup"], unit="probe.service", slice="mesh-web.slice", user="nobody").must()
    assert "0::/mesh.slice/mesh-web.slice/probe.service" in seen.stdout.splitlines()
    assert h1.run_unit(["id", "-un"], user="nobody").must().stdout == "nobody\n"


def test_the_administrators_hand_is_in_no_unit(h1: Host) -> None:
    assert ".service" not in h1.exec(["cat", "/proc/self/cgroup"]).must().stdout


def test_exit_status_output_and_input_come_back(h1: Host) -> None:
    seen = h1.run_unit(["sh", "-c", "cat; echo err >&2; exit 7"], input="in\n", env={"A": "b"})
    assert (seen.exit, seen.stdout, seen.stderr) == (7, "in\n", "err\n")
    with pytest.raises(CommandFailedError, match=r"ended with 7\nin\nerr"):
        seen.must()
    assert h1.run_unit(["sh", "-c", "echo $A"], env={"A": "b"}).stdout == "b\n"


def test_what_runs_too_long_is_ended_inside_too(h1: Host) -> None:
    with pytest.raises(NotInTimeError, match="still running after"):
        h1.exec(["sleep", "1000.5"], timeout=0.3)
    with pytest.raises(NotInTimeError, match="still running after"):
        h1.run_unit(["sleep", "1000.5"], timeout=0.5)
    wait_until(lambda: not h1.exec(["pgrep", "-f", "sleep 1000.5"]).ok, "both sleeps are gone")


def test_a_unit_for_the_length_of_a_with(h1: Host) -> None:
    with h1.unit(["sh", "-c", "echo up and listening; exec nc -lk 0.0.0.0 4000"]) as name:
        h1.wait_port(4000)
        assert h1.exec(["systemctl", "is-active", name]).stdout == "active\n"
        assert [e["MESSAGE"] for e in h1.journal(_SYSTEMD_UNIT=name)] == ["up and listening"]
    assert not h1.exec(["nc", "-z", "127.0.0.1", "4000"]).ok


def test_files_are_written_inside_not_beside(h1: Host) -> None:
    h1.exec(["ln", "-sf", "/tmp/lab-target", "/tmp/lab-link"]).must()
    h1.write("/tmp/lab-folder/file", "text\n", mode=0o640, group="daemon")
    assert h1.read("/tmp/lab-folder/file") == "text\n"
    assert h1.exec(["stat", "-c", "%a %U %G", "/tmp/lab-folder/file"]).stdout == "640 root daemon\n"
    h1.write("/tmp/lab-link", "inside\n")
    assert not Path("/tmp/lab-target").exists()


def test_the_journal_answers_by_field_and_from_a_place_on(h1: Host) -> None:
    h1.exec(["logger", "-t", "labtest", "before"]).must()
    place = h1.journal_cursor()
    h1.exec(["logger", "-t", "labtest", "after"]).must()
    assert [e["MESSAGE"] for e in h1.journal(SYSLOG_IDENTIFIER="labtest")] == ["before", "after"]
    assert [e["MESSAGE"] for e in h1.journal(SYSLOG_IDENTIFIER="labtest", after=place)] == ["after"]


def test_hosts_reach_each_other(h1: Host, h2: Host) -> None:
    for address in (h2.ipv4, h2.ipv6, "h2"):
        h1.exec(["ping", "-c", "1", "-W", "2", address]).must()
    link = json.loads(h1.exec(["ip", "-json", "address", "show", "eth0"]).must().stdout)[0]
    assert link["mtu"] == 1500
    assert not any(a.get("tentative") for a in link["addr_info"])


def test_nothing_leads_out(h1: Host) -> None:
    assert h1.exec(["ip", "route", "show", "default"]).must().stdout == ""
    assert h1.exec(["ip", "-6", "route", "show", "default"]).must().stdout == ""


@pytest.mark.parametrize("address", ["198.18.0.2", "2001:2::2"])
def test_a_capture_sees_what_passes_in_the_clear(lab: Lab, h1: Host, h2: Host, address: str) -> None:
    payload = SECRET.decode()
    with h2.unit(["nc", "-lk", "::", "4001"]):
        h2.wait_port(4001, "::1")
        with lab.capture("tcp port 4001") as seen:
            h1.run_unit(["sh", "-c", f"printf 'x{payload}' | nc -N {address} 4001"]).must()
            h1.exec(["ping", "-c", "1", h2.ipv4]).must()
        with lab.capture() as after:
            h1.exec(["ping", "-c", "1", h2.ipv4]).must()
    assert seen.contains(SECRET)
    assert any(way[2:] == (address, 4001) and stream == b"x" + SECRET for way, stream in seen.streams().items())
    assert all("TCP" in packet for packet in seen.packets()), "the filter lets only TCP through"
    assert after.frames, "a capture without a filter sees the ping"
    assert not after.contains(SECRET)


def test_a_capture_finds_what_is_spread_over_segments(lab: Lab, h1: Host, h2: Host) -> None:
    send = (
        "import socket,sys; s=socket.create_connection((sys.argv[1], 4002)); "
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); "
        "[s.send(bytes([b])) for b in sys.argv[2].encode()]; s.close()"
    )
    with h2.unit(["nc", "-lk", "0.0.0.0", "4002"]):
        h2.wait_port(4002)
        with lab.capture() as seen:
            h1.run_unit(["python3", "-c", send, h2.ipv4, SECRET.decode()]).must()
    assert not any(SECRET in frame for frame in seen.frames)
    assert seen.contains(SECRET)


def test_the_kernel_of_the_machine_cannot_be_set_from_a_host(h1: Host) -> None:
    assert not h1.exec(["sysctl", "-w", "kernel.pid_max=40000"]).ok
    assert not h1.exec(["sh", "-c", "echo 1 > /sys/kernel/mm/ksm/run"]).ok
    h1.exec(["sysctl", "-w", "net.ipv4.tcp_fwmark_accept=0"]).must()


def test_a_slice_can_carry_a_pinned_filter(h1: Host) -> None:
    """bpffs is there and writable: what the guard needs."""
    assert " bpf " in h1.read("/proc/mounts")
    h1.exec(["mkdir", "/sys/fs/bpf/lab"]).must()
    h1.exec(["rmdir", "/sys/fs/bpf/lab"]).must()


@pytest.mark.parametrize(
    ("unit", "port"), [("nginx", 80), ("redis-server", 6379), ("postgresql@15-main", 5432), ("ssh", 22)]
)
def test_stock_services_start_when_asked(fresh_lab: Lab, unit: str, port: int) -> None:
    h2 = fresh_lab["h2"]
    assert not h2.exec(["systemctl", "is-active", unit]).ok
    h2.systemctl("start", unit)
    h2.wait_port(port)


def test_reboot_keeps_the_disk_and_nothing_else(fresh_lab: Lab) -> None:
    before = fresh_lab["h1"]
    before.write("/etc/kept", "on disk\n")
    before.write("/run/lost", "in memory\n")
    boot = before.read("/proc/1/stat")
    after = fresh_lab.reboot("h1")
    assert after.read("/etc/kept") == "on disk\n"
    assert not after.exists("/run/lost")
    assert after.read("/proc/1/stat") != boot
    fresh_lab["h2"].exec(["ping", "-c", "1", "-W", "2", after.ipv4]).must()


def test_closing_leaves_nothing() -> None:
    with Lab(("h1",)) as lab:
        namespaces = {os.readlink(lab["h1"].netns), os.readlink(lab.network.netns)}  # noqa: PTH115
        assert namespaces <= living_network_namespaces()
        assert traces(lab.id, namespaces).keys() >= {"folder", "cgroup", "namespaces"}
    assert traces(lab.id, namespaces) == {}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_lab_that_is_ended_leaves_nothing(end: signal.Signals) -> None:
    """Killed, its keepers clear up; what they cannot (the lab's own folder) the next lab sweeps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "up", "h1"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process:
        line = process.stdout.readline()
        assert "198.18.0.1" in line
        mine = [f for f in STATE.glob("hmlab-*") if f.joinpath("owner").read_text() == str(process.pid)]
        assert len(mine) == 1
        lab_id = mine[0].name
        pid = json.loads((mine[0] / "hosts.json").read_text())["hosts"]["h1"][1]
        namespaces = {os.readlink(f"/proc/{pid}/ns/net")}  # noqa: PTH115
        os.kill(process.pid, end)
        process.wait(30)
    wait_until(lambda: not namespaces & living_network_namespaces(), "the host's processes are gone")
    if end is signal.SIGKILL:
        wait_until(lambda: not (cgroup2_mount() / lab_id / "h1").exists(), "the keeper has cleared up")
        sweep()
    assert traces(lab_id, namespaces) == {}


def test_keepers_that_are_killed_too_are_swept_up_after() -> None:
    """A cgroup and a folder of a dead lab, as if everybody had been killed at once."""
    folder, cgroup = STATE / "hmlab-00000000", cgroup2_mount() / "hmlab-00000000"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "h1.console").touch()
    (cgroup / "h1" / "system.slice").mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as left_over:
        (cgroup / "h1" / "system.slice" / "cgroup.procs").write_text(str(left_over.pid))
        sweep()
        assert left_over.wait(5) == -signal.SIGKILL
    assert not folder.exists()
    assert not cgroup.exists()
    (cgroup / "h1").mkdir(parents=True)
    sweep()
    assert not cgroup.exists(), "without its folder too"
