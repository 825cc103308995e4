"""The guard under real systemd: there before the first meshed unit; without it, no meshed unit starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


@pytest.fixture
def hosts(hostmesh_wheels: Path) -> Iterator[Lab]:
    with Lab(("h1", "h2"), layers=[hostmesh_wheels]) as lab:
        yield lab


def can_ping(host: Host, address: str, slice_name: str) -> bool:
    return host.run_unit(["ping", "-c", "1", "-W", "1", address], slice=slice_name).ok


def test_a_meshed_unit_stays_on_loopback_before_agent_and_proxy(hosts: Lab) -> None:
    h1, h2 = hosts["h1"], hosts["h2"]
    assert not h1.exec(["systemctl", "is-active", "hostmeshd", "hostmesh-proxy"]).ok
    for address in (h2.ipv4, h2.ipv6):
        assert can_ping(h1, address, "system.slice")
        assert not can_ping(h1, address, "mesh-web.slice")
    assert can_ping(h1, "127.0.0.1", "mesh-web.slice")
    assert h1.exec(["systemctl", "is-active", "hostmesh-guard.service"]).ok
    assert h1.exec(["ls", "/sys/fs/bpf/hostmesh"]).must().stdout.split() == ["egress", "ingress"]
    assert h1.failed_units() == []


def test_without_the_guard_no_meshed_unit_starts(hosts: Lab) -> None:
    h1 = hosts["h1"]
    h1.write("/etc/hostmesh/hostmesh.toml", '[marks]\nallowed = "none"\n')
    h1.write("/etc/systemd/system/web.service", "[Service]\nSlice=mesh-web.slice\nExecStart=/bin/sleep infinity\n")
    h1.systemctl("daemon-reload")
    assert not h1.exec(["systemctl", "start", "web.service"]).ok
    assert h1.failed_units() == ["hostmesh-guard.service"]
    assert not h1.exec(["systemctl", "is-active", "mesh.slice"]).ok
    said = [entry["MESSAGE"] for entry in h1.journal(unit="hostmesh-guard.service")]
    assert any("marks.allowed must be one bit" in line for line in said), said
    h1.exec(["rm", "/etc/hostmesh/hostmesh.toml"]).must()
    h1.systemctl("start", "web.service")


def test_the_guard_is_there_again_after_a_boot(hosts: Lab) -> None:
    h1 = hosts["h1"]
    h1.write(
        "/etc/systemd/system/web.service",
        "[Service]\nSlice=mesh-web.slice\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
    )
    h1.systemctl("daemon-reload")
    h1.systemctl("enable", "web.service")
    again = hosts.reboot("h1")
    assert again.exec(["systemctl", "is-active", "web.service", "hostmesh-guard.service", "mesh.slice"]).ok
    assert not can_ping(again, hosts["h2"].ipv4, "mesh-web.slice")
