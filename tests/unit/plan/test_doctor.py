"""What the doctor says of a host, as a table: one thing is wrong at a time, and nothing else is told."""

from dataclasses import replace
from typing import Any

import pytest

from hostmesh.plan.doctor import PORT_RANGE, RESERVED, judge
from hostmesh.plan.footprint import SYSCTLS
from hostmesh.plan.surroundings import Clock, Disk, Holder, OtherRule, Surroundings
from hostmesh.policy.settings import Ports, Settings

OURS = (
    Holder(15008, "tcp", ("hostmesh-proxy", "systemd"), ("/init.scope", "/system.slice/hostmesh-proxy.service")),
    Holder(15020, "tcp", ("hostmeshd",), ("/system.slice/hostmeshd.service",)),
)
NOW = 1_800_000_000
CLOCK = Clock(NOW, synchronized=False, container=False, service="chrony.service")
MARK = Settings().marks.outbound
WELL = Surroundings(
    kernel=(6, 1),
    systemd=252,
    unsupported=(),
    cgroup2=True,
    applied=True,
    pinned=True,
    listing=(),
    legacy=(),
    reloads=(),
    rules=(OtherRule(4, 0, 0, 0, 255), OtherRule(4, 32766, 0, 0, 254), OtherRule(4, 5270, 0, 0, 52, everything=False)),
    holders=OURS,
    sysctls={**SYSCTLS, PORT_RANGE: "32768\t60999", RESERVED: ""},
    hosts=("files", "resolve", "dns"),
    disks=(
        Disk("/etc/hostmesh", 1 << 30, 100_000, read_only=False),
        Disk("/var/lib/hostmesh", 1 << 30, None, read_only=False),
    ),
    inotify=(20, 128),
    clock=CLOCK,
    validity=(NOW - 10, NOW + 10),
    versions={"hostmesh": "1.0", "hostmesh-proxy": "1.0", "hostmeshd": "1.0"},
)


def test_a_host_that_is_well() -> None:
    assert judge(Settings(), WELL) == ()


@pytest.mark.parametrize(
    ("change", "level", "code", "says"),
    [
        ({"kernel": (5, 10)}, "problem", "kernel", "5.10 is older than 6.1"),
        ({"unsupported": ("tproxy",)}, "problem", "kernel", "modprobe nft_tproxy"),
        ({"unsupported": ("socket",)}, "problem", "kernel", "CONFIG_NFT_SOCKET"),
        ({"systemd": 249}, "problem", "systemd", "249 is older than 252"),
        ({"cgroup2": False}, "problem", "cgroup", "systemd.unified_cgroup_hierarchy=1"),
        ({"pinned": False}, "problem", "guard", "hostmesh-guard, as root"),
        (
            {"holders": (Holder(15008, "tcp", ("nc",), ("/system.slice/nc.service",)),)},
            "problem", "port", "held by nc (/system.slice/nc.service), not by hostmesh-proxy",
        ),
        ({"holders": (Holder(15053, "udp", (), ()),)}, "problem", "port", "[ports] dns in hostmesh.toml"),
        ({"sysctls": {**WELL.sysctls, "net.ipv4.fwmark_reflect": "0"}}, "problem", "sysctl", "was set to 1"),
        (
            {"sysctls": {key: value for key, value in WELL.sysctls.items() if "ipv6" not in key}},
            "problem", "sysctl", "not known to this kernel",
        ),
        (
            {"sysctls": {**WELL.sysctls, PORT_RANGE: "15007 60999", RESERVED: "15020,15000-15009"}},
            "risk", "port-range", "take port 15053, 15010, 15011",
        ),
        ({"legacy": ("filter",)}, "risk", "legacy", "iptables-legacy-save"),
        ({"reloads": ("/etc/nftables.conf",)}, "risk", "flush", "flush only your own tables"),
        ({"rules": (OtherRule(4, 100, MARK, MARK, 99),)}, "problem", "rule", "ip -4 rule 100"),
        ({"rules": (OtherRule(4, 100, 0, 0, 99),)}, "problem", "rule", "to table 99"),
        ({"rules": (OtherRule(6, 9, 0xCA6C, 0xFFFF_FFFF, 99, inverted=True),)}, "problem", "rule", "ip -6 rule 9"),
        ({"hosts": ("files",)}, "problem", "dns", "hosts: files dns"),
        ({"clock": replace(CLOCK, now=NOW - 60)}, "problem", "clock", "before this host's certificate begins"),
        ({"clock": replace(CLOCK, now=NOW + 60)}, "problem", "clock", "after this host's certificate has ended"),
        ({"clock": replace(CLOCK, service="")}, "risk", "clock", "systemd-timesyncd"),
        ({"disks": (Disk("/x", 1 << 20, None, read_only=False),)}, "problem", "disk", "/x has 1 MB left"),
        ({"disks": (Disk("/x", 1 << 30, 3, read_only=False),)}, "problem", "disk", "3 inodes"),
        ({"disks": (Disk("/x", 1 << 30, None, read_only=True),)}, "problem", "disk", "remount,rw"),
        ({"inotify": (125, 128)}, "problem", "inotify", "max_user_instances=1024"),
        ({"versions": {**WELL.versions, "hostmeshd": "0.9"}}, "problem", "version", "systemctl restart hostmeshd"),
        ({"versions": {**WELL.versions, "hostmesh-proxy": "missing"}}, "problem", "version", "install both"),
    ],
)  # fmt: skip
def test_one_thing_is_wrong(change: dict[str, Any], level: str, code: str, says: str) -> None:
    told = judge(Settings(), replace(WELL, **change))
    assert {(trouble.level, trouble.code) for trouble in told} == {(level, code)}, told
    assert any(says in f"{trouble.where} {trouble.what} {trouble.remedy}" for trouble in told), told


@pytest.mark.parametrize(
    "change",
    [
        {"pinned": False, "applied": False, "sysctls": {**WELL.sysctls, **dict.fromkeys(SYSCTLS, "0")}},
        {"rules": (OtherRule(4, 100, 0x40000, 0xFF0000, 99), OtherRule(4, 100, 0, 0, 99, selective=True))},
        {"rules": (OtherRule(4, 8000, 0, 0, 99),)},
        {"clock": replace(CLOCK, service="", container=True)},
        {"clock": replace(CLOCK, service="", synchronized=True)},
        {"validity": None},
    ],
)
def test_what_is_not_in_the_way(change: dict[str, Any]) -> None:
    assert judge(Settings(), replace(WELL, **change)) == ()


def test_it_asks_for_the_ports_that_are_set() -> None:
    moved = Settings(ports=replace(Ports(), wire=4711))
    taken = replace(WELL, holders=(Holder(15008, "tcp", ("nc",), ()),))
    assert judge(moved, taken) == ()
    assert judge(moved, replace(WELL, holders=(Holder(4711, "tcp", ("nc",), ()),)))


def test_what_nft_does_not_show_of_iptables_is_no_proof() -> None:
    chain = {"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input", "policy": "drop"}
    rule = {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 4, "expr": [{"xt": None}, {"accept": None}]}
    seen = judge(Settings(), replace(WELL, listing=({"chain": chain}, {"rule": rule})))
    assert [(trouble.level, trouble.code) for trouble in seen] == [("risk", "foreign-drop")] * 2
    seen = judge(Settings(), replace(WELL, listing=({"chain": chain},)))
    assert [trouble.level for trouble in seen] == ["problem"] * 2
