"""The verbs that change a host, on real ones: a mesh of one host from nothing, audit to enforced, out again."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hostmesh.plan.footprint import SYSCTLS, ports
from hostmesh.plan.routing import PROTOCOL
from hostmesh.policy.settings import Settings
from tests.lab.host import Host, Result
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.lab
POLICIES = "/etc/hostmesh/policies"
DAEMONS = ("hostmeshd.service", "hostmesh-proxy.service", "hostmesh-controller.service")


def hostmesh(host: Host, *words: str, input: str | None = None) -> Result:  # noqa: A002 (subprocess's word)
    return host.exec(["hostmesh", *words], input=input, timeout=60)


def unit_status(host: Host, unit: str) -> dict[str, Any] | None:
    told = json.loads(hostmesh(host, "status", "--json").must().stdout)
    return next((row for row in told["units"] if row["unit"] == unit), None)


def meshed(host: Host, unit: str) -> bool:
    row = unit_status(host, unit)
    return bool(row and row["svid"] and row["in_slice"] and row["published"])


def ask_nginx(host: Host, unit: str) -> str:
    """The status with which nginx answers a meshed unit; the words of the failure where none came."""
    ask = ("curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://nginx/")
    done = hostmesh(host, "run", "--create", "--unit", unit, "--", *ask)
    return done.stdout or done.stderr


def elements(host: Host, word: str) -> int:
    return host.exec(["nft", "list", "table", "inet", "hostmesh"]).must().stdout.count(word)


@pytest.fixture
def host(installed_lab: Lab) -> Host:
    """A host on which nothing of hostmesh is set up, with nginx and redis running as Debian ships them."""
    fresh = installed_lab["h1"]
    fresh.systemctl("enable", "--now", "nginx.service", "redis-server.service")
    return fresh


@pytest.fixture
def meshed_host(host: Host) -> Host:
    """The same, both meshed in audit mode."""
    mesh_both(host)
    return host


def mesh_both(host: Host) -> None:
    for unit in ("nginx.service", "redis-server.service"):
        hostmesh(host, "enable", unit).must()
        host.systemctl("restart", unit)
        wait_until(lambda u=unit: meshed(host, u), f"{unit} is meshed", 30.0, 0.1)


def taken(host: Host) -> dict[str, str]:
    """What is there now of everything that docs/architecture.md says hostmesh takes."""
    ours = "|".join(f":{port.number}" for port in ports(Settings()))
    looks = {
        "tables": "nft list tables",
        "rules": "ip -4 rule; ip -6 rule",
        "routes": f"ip -4 route show table all proto {PROTOCOL}; ip -6 route show table all proto {PROTOCOL}",
        "ports": f"ss -Hlntu | grep -E '({ours}) ' | wc -l",
        "slices": "find /sys/fs/cgroup -maxdepth 2 -name 'mesh*'",
        **{key: f"sysctl -n {key}" for key in SYSCTLS},
    }
    return {what: host.exec(["sh", "-c", look]).must().stdout for what, look in looks.items()}


def test_from_nothing_to_enforced_by_the_commands_of_the_readme(host: Host) -> None:
    enabled = hostmesh(host, "enable", "nginx").must()
    assert "next    systemctl restart nginx.service\n" in enabled.stdout
    assert "made    a controller for this host alone" in enabled.stderr
    assert host.exec(["systemctl", "is-enabled", *DAEMONS]).must().stdout.split() == ["enabled"] * 3
    assert '80 = "http"' in host.read(f"{POLICIES}/nginx.service.toml")
    host.systemctl("restart", "nginx.service")
    wait_until(lambda: meshed(host, "nginx.service"), "nginx is meshed", 30.0, 0.1)
    wait_until(lambda: ask_nginx(host, "shop") == "200", "audit lets an unnamed caller pass", 15.0, 0.1)

    assert "AUDIT: nothing is enforced yet" in hostmesh(host, "status").must().stdout
    wait_until(lambda: (unit_status(host, "nginx.service") or {})["suggestions"], "the caller is suggested", 10.0, 0.1)
    asked = hostmesh(host, "enforce", "nginx")
    assert asked.exit == 1
    assert 'from  = ["shop"]' in asked.stderr
    assert 'mode = "audit"' in host.read(f"{POLICIES}/nginx.service.toml"), "it was not decided yet"
    hostmesh(host, "enforce", "nginx", "--allow-seen").must()

    wait_until(lambda: ask_nginx(host, "guest") == "403", "a caller that no rule names is refused", 15.0, 0.1)
    assert ask_nginx(host, "shop") == "200"
    allowed = hostmesh(host, "explain", "shop", "nginx", "GET", "/")
    assert (allowed.exit, f"allowed, by {POLICIES}/nginx.service.toml:" in allowed.stdout) == (0, True)
    refused = hostmesh(host, "explain", "guest", "nginx", "GET", "/")
    assert (refused.exit, "nginx.service.toml:no-allow" in refused.stdout) == (1, True)


@pytest.mark.parametrize(
    ("setting", "says"),
    [("Slice=own.slice", "own.slice, whose limits would be lost"), ("PrivateNetwork=yes", "take PrivateNetwork= out")],
)
def test_enable_says_no_and_changes_nothing(host: Host, setting: str, says: str) -> None:
    host.write("/etc/systemd/system/nginx.service.d/own.conf", f"[Service]\n{setting}\n")
    host.systemctl("daemon-reload")
    refused = hostmesh(host, "enable", "nginx")
    assert (refused.exit, says in refused.stderr) == (1, True), refused
    assert not host.exists("/etc/hostmesh")
    assert not host.exists("/etc/systemd/system/nginx.service.d/50-hostmesh.conf")
    assert not host.exec(["systemctl", "is-active", *DAEMONS]).ok


def test_enable_names_the_unit_that_was_meant(host: Host) -> None:
    assert "did you mean nginx.service" in hostmesh(host, "enable", "ngnix").stderr
    assert "hostmesh enable redis-server.service" in hostmesh(host, "enable", "redis").stderr


def test_enable_keeps_a_policy_and_stops_at_a_broken_one(host: Host) -> None:
    mine = '# mine\n[service.ports]\n80 = "http"\n'
    host.write(f"{POLICIES}/nginx.service.toml", mine)
    host.write(f"{POLICIES}/other.service.toml", "[inbuond]\n")
    refused = hostmesh(host, "enable", "nginx")
    assert (refused.exit, "other.service.toml:1:1: unknown key 'inbuond'" in refused.stderr) == (1, True)
    assert not host.exists("/etc/systemd/system/nginx.service.d/50-hostmesh.conf")
    host.exec(["rm", f"{POLICIES}/other.service.toml"]).must()
    hostmesh(host, "enable", "nginx").must()
    assert host.read(f"{POLICIES}/nginx.service.toml") == mine


def test_a_unit_that_its_socket_starts_is_meshed_with_it(host: Host) -> None:
    host.write("/etc/systemd/system/hello.socket", "[Socket]\nListenStream=7001\n[Install]\nWantedBy=sockets.target\n")
    serve = "import socket; s = socket.socket(fileno=3)\nwhile True: c, _ = s.accept(); c.sendall(b'hi'); c.close()"
    host.write("/opt/hello.py", serve)
    host.write("/etc/systemd/system/hello.service", "[Service]\nExecStart=/usr/bin/python3 /opt/hello.py\n")
    host.systemctl("daemon-reload")
    host.systemctl("enable", "--now", "hello.socket")
    enabled = hostmesh(host, "enable", "hello").must()
    assert "7001 =" in host.read(f"{POLICIES}/hello.service.toml")
    assert "next    systemctl start hello.socket hello.service" in enabled.stdout
    assert host.exec(["systemctl", "show", "-P", "Slice", "hello.socket"]).stdout == "mesh-hello.slice\n"
    host.systemctl("restart", "hello.socket", "hello.service")
    hostmesh(host, "disable", "--now", "hello").must()
    for unit in ("hello.socket", "hello.service"):
        assert "mesh" not in host.exec(["systemctl", "show", "-P", "ControlGroup", unit]).must().stdout
        assert host.exec(["systemctl", "is-active", unit]).ok


def test_disable_now_with_everything_dead_leaves_the_others_alone_and_then_nothing(meshed_host: Host) -> None:
    host = meshed_host
    host.exec(["nft", "add", "table", "inet", "foreign"]).must()
    for unit in DAEMONS:
        host.systemctl("kill", "--signal=SIGKILL", unit)
        host.systemctl("stop", unit)
    of_redis = elements(host, "redis-server.service.toml")
    assert elements(host, "nginx.service.toml")
    hostmesh(host, "disable", "--now", "nginx").must()
    assert elements(host, "nginx") == 0
    assert elements(host, "redis-server.service.toml") == of_redis
    assert host.exec(["systemctl", "show", "-P", "ControlGroup", "nginx"]).stdout == "/system.slice/nginx.service\n"
    assert host.exists(f"{POLICIES}/nginx.service.toml.disabled")
    assert host.exec(["curl", "-sS", "-o", "/dev/null", "http://127.0.0.1/"]).ok

    hostmesh(host, "disable", "--now", "redis-server").must()
    assert host.exec(["nft", "list", "tables"]).must().stdout == "table inet foreign\n"
    assert "7300" not in host.exec(["sh", "-c", "ip rule; ip -6 rule; ip route show table all"]).must().stdout
    assert host.exec(["sysctl", "-n", "net.ipv4.tcp_fwmark_accept"]).must().stdout == "0\n"
    again = hostmesh(host, "disable", "nginx")
    assert (again.exit, "nginx.service is not meshed" in again.stderr) == (1, True)


def test_uninstall_with_all_alive_leaves_kernel_and_units_as_they_were(host: Host) -> None:
    host.exec(["sysctl", "-w", "net.ipv6.fwmark_reflect=1"]).must()  # somebody else's: it is not ours to reset
    before = taken(host)
    mesh_both(host)
    during = taken(host)
    assert {what for what in before if during[what] == before[what]} == {"net.ipv6.fwmark_reflect"}
    assert {key: during[key].strip() for key in SYSCTLS} == SYSCTLS
    hostmesh(host, "uninstall").must()
    assert taken(host) == before
    assert not host.exec(["systemctl", "is-active", *DAEMONS]).ok
    assert host.exec(["systemctl", "is-enabled", *DAEMONS]).stdout.split() == ["disabled"] * 3
    assert host.exec(["sh", "-c", "ls /etc/systemd/system/*.d/50-hostmesh.conf"]).exit != 0
    assert host.exec(["redis-cli", "ping"]).stdout == "PONG\n"


def test_run_is_the_command_itself(meshed_host: Host) -> None:
    host = meshed_host
    script = 'cat; pwd; echo "$0 $$"; cat /proc/self/cgroup; echo err >&2; exit 7'
    done = hostmesh(host, "run", "--create", "--unit", "job", "--", "sh", "-c", script, "%n $HOME", input="in\n")
    lines = done.stdout.splitlines()
    assert (done.exit, done.stderr.splitlines()[-1], lines[0]) == (7, "err", "in")
    assert lines[2].startswith("%n $HOME "), "nothing is expanded on the way"
    assert "0::/mesh.slice/mesh-job.slice/" in done.stdout
    assert hostmesh(host, "run", "--unit", "job", "--", "sh", "-c", "kill -9 $$").exit == 128 + 9
    assert hostmesh(host, "run", "--unit", "job", "--user", "nobody", "--", "id", "-un").stdout == "nobody\n"
    host.systemctl("stop", "hostmeshd.service")
    assert ask_nginx(host, "job") == "200", "traffic goes on without the agent"
    nowhere = hostmesh(host, "run", "--unit", "nopolicy", "--", "true")
    assert (nowhere.exit, "nopolicy.service has no policy" in nowhere.stderr) == (1, True)


def test_run_passes_signals_on(meshed_host: Host) -> None:
    host = meshed_host
    hostmesh(host, "run", "--create", "--unit", "job", "--", "true").must()
    trap = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    with host.popen(["hostmesh", "run", "--unit", "job", "--", "sh", "-c", trap]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (runner,) = runners(host, process)
        host.exec(["kill", f"-{signal.SIGTERM.value}", runner]).must()
        said, _ = process.communicate(timeout=15)
    assert (process.returncode, said) == (3, "caught\n")


def runners(host: Host, process: "subprocess.Popen[str]") -> list[str]:
    """Pids, as the host counts them, of the `hostmesh run` under a command started from outside."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = [Path(f"/proc/{child}/status").read_text().splitlines() for child in children]
    return [line.split()[-1] for status in lines for line in status if line.startswith("NSpid:")]
