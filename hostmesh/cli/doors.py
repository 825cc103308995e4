"""Turns settings into the doors of this host, as the agent has them: for verbs that work with the agent dead."""

from dataclasses import dataclass

from hostmesh.apply.cgroups import Cgroups
from hostmesh.apply.files import Files
from hostmesh.apply.netlink import Netlink
from hostmesh.apply.nft import Nft
from hostmesh.apply.sysctl import Sysctls
from hostmesh.apply.systemd import Systemd
from hostmesh.observe.host import HostObserver
from hostmesh.policy.settings import Settings


@dataclass(frozen=True, slots=True)
class HostDoors:
    """All of them, and the eye that looks through them."""

    systemd: Systemd
    files: Files
    nft: Nft
    netlink: Netlink
    sysctls: Sysctls
    cgroups: Cgroups
    observer: HostObserver


def open_doors(known: Settings) -> HostDoors:
    """Nothing is connected or changed by this."""
    systemd, files, nft, netlink, cgroups = Systemd(), Files(), Nft(), Netlink(), Cgroups()
    kept = f"{known.paths.state}/sysctls.json"
    sysctls = Sysctls(lambda: files.read(kept), lambda text: files.write(kept, text))
    observer = HostObserver(
        known, nft=nft, netlink=netlink, sysctls=sysctls, systemd=systemd, files=files, cgroups=cgroups
    )
    return HostDoors(systemd, files, nft, netlink, sysctls, cgroups, observer)
