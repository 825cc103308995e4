"""Installed as a user would, offline; uninstalled, the host is as it was."""

import json

import pytest

from tests.lab.host import Host
from tests.lab.install import install
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab
COMMANDS = ("hostmesh", "hostmeshd", "hostmesh-controller", "hostmesh-guard", "hostmesh-proxy")
_LOOK = r"""
find / -xdev \( -path /var/log -o -path /var/tmp -o -path /var/cache \) -prune -o \
    \( -type f -o -type l -o -type d \) -printf '%p %y %m %U %l\n' | sort
"""


def files(host: Host) -> set[str]:
    """Every file, link and folder of the host's disk: path, kind, mode, owner, target."""
    return set(host.exec(["sh", "-c", _LOOK], timeout=60).must().stdout.splitlines())


def units(host: Host) -> set[str]:
    listed = host.exec(["systemctl", "list-unit-files", "--output=json"]).must().stdout
    return {f"{unit['unit_file']} {unit['state']}" for unit in json.loads(listed)}


def test_install_brings_commands_and_units_and_starts_nothing(fresh_lab: Lab) -> None:
    host = fresh_lab["h1"]
    install(host)
    for command in COMMANDS:
        assert host.exec(["readlink", "-e", f"/usr/local/bin/{command}"]).must().stdout.startswith("/opt/hostmesh/")
    assert "hostmeshd.service disabled" in units(host)
    assert "mesh.slice static" in units(host)
    assert not host.exec(["systemctl", "is-active", "hostmeshd", "hostmesh-proxy", "hostmesh-controller"]).ok
    host.exec(["id", "hostmesh-controller"]).must()


def test_installing_again_upgrades(fresh_lab: Lab) -> None:
    host = fresh_lab["h1"]
    install(host)
    before = files(host)
    host.exec(["rm", "/usr/local/bin/hostmesh", "/usr/local/lib/systemd/system/mesh.slice"]).must()
    install(host)
    assert files(host) == before


def test_uninstall_leaves_the_host_as_it_was(fresh_lab: Lab) -> None:
    host = fresh_lab["h1"]
    before, units_before, users_before = files(host), units(host), host.read("/etc/passwd") + host.read("/etc/group")
    install(host)
    assert len(files(host) - before) > 1000
    host.exec(["/opt/hostmesh/bin/uninstall", "--purge"]).must()
    left = {
        line for line in files(host) ^ before if not line.startswith(("/etc/passwd-", "/etc/shadow-", "/etc/group-"))
    }
    left = {line for line in left if not line.startswith("/etc/gshadow-")}
    assert left == set()
    assert units(host) == units_before
    assert host.read("/etc/passwd") + host.read("/etc/group") == users_before


def test_the_layer_is_what_the_installer_makes(installed_lab: Lab, fresh_lab: Lab) -> None:
    """Tests boot with the layer; this is why they may."""
    live = fresh_lab["h1"]
    install(live)

    def of_ours(host: Host) -> set[str]:
        return {line for line in files(host) if "/opt/hostmesh" in line or "/usr/local" in line}

    assert of_ours(live) == of_ours(installed_lab["h1"])
    assert installed_lab["h1"].exec(["systemctl", "is-system-running"]).must().stdout == "running\n"


def test_shipped_units_pass_systemds_own_check(installed_lab: Lab) -> None:
    host = installed_lab["h1"]
    names = host.exec(["sh", "-c", "ls /usr/local/lib/systemd/system/*"]).must().stdout.split()
    checked = host.exec(["systemd-analyze", "verify", "--man=no", *names])
    assert (checked.exit, checked.stdout + checked.stderr) == (0, "")
