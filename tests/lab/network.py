"""Turns hosts into neighbours: a bridge in a namespace of its own, one veth pair a host.

Nothing of it exists outside the lab's namespaces, so nothing can be left behind on this machine. Addresses
are those set aside for benchmarks: 198.18.0.0/15 (RFC 2544) and 2001:2::/48 (RFC 5180).
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyroute2 import IPRoute

from tests.lab.capture import Capture, capturing
from tests.lab.host import Host

BRIDGE = "br0"
_IFA_F_NODAD = 0x02


@dataclass(frozen=True)
class Network:
    """The lab's switch: ``netns`` is the path of the namespace that holds the bridge."""

    netns: str

    def build(self) -> None:
        """Make the bridge: a plain switch, no spanning tree, no multicast snooping."""
        with IPRoute(netns=self.netns) as route:
            route.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
            route.link("set", ifname=BRIDGE, state="up")

    def join(self, host: Host) -> None:
        """Give ``host`` its ``eth0`` with both addresses, before systemd starts."""
        with IPRoute(netns=self.netns) as route:
            route.link(
                "add",
                ifname=host.name,
                kind="veth",
                peer={
                    "ifname": "eth0",
                    "net_ns_pid": host.pid,
                    "address": f"02:00:c6:12:00:{host.index:02x}",
                },
            )
            port = route.link_lookup(ifname=host.name)[0]
            bridge = route.link_lookup(ifname=BRIDGE)[0]
            route.link("set", index=port, master=bridge, state="up")
        with IPRoute(netns=host.netns) as route:
            eth0 = route.link_lookup(ifname="eth0")[0]
            route.link("set", index=eth0, state="up")
            route.addr("add", index=eth0, address=host.ipv4, prefixlen=24, broadcast="198.18.0.255")
            route.addr("add", index=eth0, address=host.ipv6, prefixlen=64, family=socket.AF_INET6, flags=_IFA_F_NODAD)

    def unplug(self, host_name: str) -> None:
        """Pull the host's cable."""
        self._carrier(host_name, "down")

    def plug(self, host_name: str) -> None:
        """Put the cable back."""
        self._carrier(host_name, "up")

    def _carrier(self, host_name: str, state: str) -> None:
        with IPRoute(netns=self.netns) as route:
            route.link("set", index=route.link_lookup(ifname=host_name)[0], state=state)

    @contextmanager
    def capture(self, bpf_filter: str | None = None) -> Iterator[Capture]:
        """See every frame that passes between the hosts while the ``with`` body runs; see ``Capture``."""
        with capturing(self.netns, BRIDGE, bpf_filter) as capture:
            yield capture
