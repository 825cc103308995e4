"""The sandbox of each shipped unit, as systemd scores it on a running host, and what its processes really can't do."""

import json
import re
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.mesh.world import World

pytestmark = pytest.mark.lab
UNITS = Path(__file__).parents[2] / "units"
MOST = {
    "hostmesh-proxy.service": 1.4,
    "hostmesh-controller.service": 1.1,
    "hostmeshd.service": 2.0,
    "hostmesh-guard.service": 1.2,
}
DAEMONS = ("hostmesh-proxy.service", "hostmesh-controller.service", "hostmeshd.service")


def counted(host: Host, unit: str) -> list[str]:
    """The checks that the unit does not pass, as systemd names them."""
    said = host.exec(["systemd-analyze", "security", "--json=short", "--no-pager", unit]).must().stdout
    return [check["name"] for check in json.loads(said) if check["set"] is False]


def score(host: Host, unit: str) -> float:
    said = host.exec(["systemd-analyze", "security", "--no-pager", unit]).must().stdout
    return float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)[0])


def test_scores(mesh: World) -> None:
    found = {unit: score(mesh.h2, unit) for unit in MOST}
    print(f"systemd-analyze security: {found}")
    assert {unit: is_now for unit, is_now in found.items() if is_now > MOST[unit]} == {}


@pytest.mark.parametrize("unit", sorted(MOST))
def test_every_exception_has_its_reason(mesh: World, unit: str) -> None:
    """What systemd still counts against the unit is named by a comment of its file, or is the capability set there."""
    comments = [line for line in (UNITS / unit).read_text().splitlines() if line.startswith("#")]
    told = set(re.findall(r"\w+=", "\n".join(comments))) | set(re.findall(r"CAP_\w+", "\n".join(comments)))
    names = counted(mesh.h2, unit)
    assert names
    assert [name for name in names if not reasoned(name, told)] == []


def reasoned(name: str, told: set[str]) -> bool:
    """A check of the bounding set by a capability of that family, any other by its setting."""
    setting, _, families = name.partition("=~CAP_")
    if setting == "CapabilityBoundingSet":
        return any(part.strip("_") in capability for part in re.findall("[A-Z_]{3,}", families) for capability in told)
    return f"{name.partition('=')[0]}=" in told


@pytest.mark.parametrize("unit", DAEMONS)
def test_no_new_privileges_and_a_filter_of_system_calls(mesh: World, unit: str) -> None:
    lines = (line.split(":", 1) for line in mesh.h2.read(f"/proc/{mesh.h2.main_pid(unit)}/status").splitlines())
    status = {key: value.strip() for key, value in lines}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("unit", DAEMONS)
def test_the_system_is_read_only(mesh: World, unit: str) -> None:
    """Tried by root with all capabilities, who sees what the process sees."""
    view = ["nsenter", f"--target={mesh.h2.main_pid(unit)}", "--mount", "--"]
    for path in ("/usr/x", "/etc/x", "/var/x", "/opt/hostmesh/x", "/proc/sys/net/ipv4/ip_forward", "/sys/fs/cgroup/x"):
        tried = mesh.h2.exec([*view, "sh", "-c", f"echo 0 > {path}"])
        assert "Read-only file system" in tried.stderr or "Directory nonexistent" in tried.stderr, (path, tried)
