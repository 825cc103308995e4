"""Turns a running host into what `plan/doctor.py` judges. Looks at what everybody set up, and changes nothing."""

import asyncio
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hostmesh.apply.bus import MANAGER, PATH, UNIT, Bus
from hostmesh.apply.netlink import Netlink
from hostmesh.apply.nft import Nft
from hostmesh.observe.clock import synchronized
from hostmesh.observe.holders import holders, inotify_instances
from hostmesh.plan.doctor import LOOKED_AT
from hostmesh.plan.footprint import ports
from hostmesh.plan.surroundings import Clock, Disk, OtherRule, Surroundings
from hostmesh.policy.settings import Settings

_CONTAINERS = ("container-other", "docker", "lxc", "lxc-libvirt", "openvz", "podman", "rkt", "systemd-nspawn", "wsl")
_STATEMENTS = {
    "tproxy": "meta l4proto tcp tproxy ip to 127.0.0.1:1 accept",
    "socket": "socket transparent 1 accept",
}
_TIME_SERVICES = tuple(
    f"{name}.service" for name in ("systemd-timesyncd", "chrony", "chronyd", "ntp", "ntpd", "ntpsec", "openntpd")
)
_FOLDERS = ("/etc/hostmesh", "/var/lib/hostmesh-proxy", "/var/lib/hostmesh-controller")
_FLUSH = re.compile(r"^\s*flush\s+ruleset", re.MULTILINE)
_NFT_CONF, _INOTIFY = Path("/etc/nftables.conf"), Path("/proc/sys/fs/inotify/max_user_instances")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What systemd and rtnetlink say."""

    version: str
    virtualization: str
    time_service: str
    nft_service: bool
    rules: tuple[OtherRule, ...]


def look(settings: Settings, running: str) -> Surroundings:
    """This host as root sees it. running: the agent's version, empty where none answers."""
    asked, nft = asyncio.run(_ask()), Nft()
    return Surroundings(
        kernel=_numbers(os.uname().release),
        systemd=_numbers(asked.version)[0],
        unsupported=tuple(name for name, statement in _STATEMENTS.items() if not nft.can_say(statement)),
        cgroup2=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        applied=nft.state() is not None,
        pinned=all((Path(settings.paths.bpffs) / name).exists() for name in ("egress", "ingress")),
        listing=nft.others(),
        legacy=_legacy(),
        reloads=_reloads() if asked.nft_service else (),
        rules=asked.rules,
        holders=holders([(port.number, port.protocol) for port in ports(settings)]),
        sysctls=_sysctls(),
        hosts=_hosts(),
        disks=tuple(map(_disk, (settings.paths.state, *_FOLDERS))),
        inotify=(inotify_instances(), int(_INOTIFY.read_text())),
        clock=Clock(int(time.time()), synchronized(), asked.virtualization in _CONTAINERS, asked.time_service),
        validity=_validity(Path(settings.paths.state) / "identity/host.crt"),
        versions=_versions(running),
    )


async def _ask() -> _Asked:
    bus = Bus()
    await bus.connect()
    try:
        manager = await bus.get_all(PATH, MANAGER)
        (services,) = await bus.call("ListUnitsByNames", "as", list(_TIME_SERVICES))
        (nft,) = await bus.call("LoadUnit", "s", "nftables.service")
        unit: dict[str, Any] = await bus.get_all(nft, UNIT)
    finally:
        bus.close()
    return _Asked(
        manager["Version"],
        manager["Virtualization"],
        next((str(service[0]) for service in services if service[3] == "active"), ""),
        unit["UnitFileState"] == "enabled" or unit["ActiveState"] == "active",
        await Netlink().others(),
    )


def _numbers(text: str) -> tuple[int, int]:
    found = [int(number) for number in re.findall(r"\d+", text)[:2]]
    return (found[0], found[1] if len(found) > 1 else 0)


def _reloads() -> tuple[str, ...]:
    """The file that nftables.service loads, if it flushes."""
    return (str(_NFT_CONF),) if _NFT_CONF.exists() and _FLUSH.search(_NFT_CONF.read_text()) else ()


def _legacy() -> tuple[str, ...]:
    """Tables that iptables-legacy has made in this network namespace."""
    found = []
    for file in (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names")):
        found += file.read_text().split() if file.exists() else []
    return tuple(dict.fromkeys(found))


def _sysctls() -> dict[str, str]:
    files = {key: Path("/proc/sys") / key.replace(".", "/") for key in LOOKED_AT}
    return {key: file.read_text().strip() for key, file in files.items() if file.exists()}


def _hosts() -> tuple[str, ...]:
    """The words after ``hosts:``; what glibc does where the file or the line is missing (nss(5))."""
    file = Path("/etc/nsswitch.conf")
    lines: Sequence[str] = file.read_text().splitlines() if file.exists() else ()
    for line in lines:
        name, colon, words = line.partition("#")[0].partition(":")
        if colon and name.strip() == "hosts":
            return tuple(words.split())
    return ("dns", "files")


def _disk(path: str) -> Disk:
    """The file system on which it is, or would be."""
    there = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    seen = os.statvfs(there)
    inodes = seen.f_favail if seen.f_files else None
    return Disk(path, seen.f_bavail * seen.f_frsize, inodes, bool(seen.f_flag & os.ST_RDONLY))


def _validity(file: Path) -> tuple[int, int] | None:
    from cryptography import x509  # noqa: PLC0415  takes its time to load

    if not file.exists():
        return None
    leaf = x509.load_pem_x509_certificates(file.read_bytes())[0]
    return int(leaf.not_valid_before_utc.timestamp()), int(leaf.not_valid_after_utc.timestamp())


def _versions(running: str) -> dict[str, str]:
    found = {"hostmeshd": running} if running else {}
    for package in ("hostmesh", "hostmesh-proxy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
