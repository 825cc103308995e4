"""What hostmesh takes on a host is told once: the page and the shipped unit say what the code says."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hostmesh.controller.config import Config
from hostmesh.plan.footprint import SYSCTLS, flags, footprint, ports
from hostmesh.policy.settings import Marks, Ports, Settings

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/architecture.md"
VIP_RANGES = Config().vip_ranges


def test_the_page_is_current() -> None:
    table = footprint(Settings(), VIP_RANGES)
    assert f"\n\n{table}\n\n" in PAGE.read_text(), f"docs/architecture.md shall have this table:\n{table}"


def test_every_port_and_mark_of_the_settings_is_in_it() -> None:
    assert {port.name: port.number for port in ports(Settings())} == asdict(Ports())
    assert {flag.name: flag.bits for flag in flags(Settings())} == asdict(Marks())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (replace(Settings(), ports=replace(Ports(), wire=4711)), "4711/tcp"),
        (replace(Settings(), marks=replace(Marks(), proxy=0x4000_0000)), "`0x40000000`"),
        (replace(Settings(), route_table=911), "911: `local default dev lo`"),
    ],
)
def test_it_follows_the_settings(settings: Settings, says: str) -> None:
    assert says in footprint(settings, VIP_RANGES)
    assert says not in footprint(Settings(), VIP_RANGES)


def test_the_agents_unit_lets_it_write_these_sysctls_and_no_others() -> None:
    lines = (ROOT / "units/hostmeshd.service").read_text().splitlines()
    start = "ReadWritePaths=-/proc/sys/"
    assert [line.removeprefix(start).replace("/", ".") for line in lines if line.startswith(start)] == list(SYSCTLS)
