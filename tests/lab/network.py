"""Turns hosts into neighbours: a bridge in a namespace of its own, one veth pair a host.

Nothing of it exists outside the lab's namespaces, so nothing can be left behind on this machine. Addresses
are those set aside for benchmarks: 198.18.0.0/15 (RFC 2544) and 2001:2::/48 (RFC 5180).
"""

import errno
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tests.lab.capture import Capture, capturing
from tests.lab.host import Host
from tests.lab.namespaces import set_netns

BRIDGE = "br0"
T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """The lab's switch: ``netns`` is the path of the namespace that holds the bridge."""

    netns: str

    def build(self) -> None:
        """Make the bridge: a plain switch, no spanning tree, no multicast snooping."""

        def make(route: IPRoute) -> None:
            route.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
            route.link("set", ifname=BRIDGE, state="up")

        in_namespace(self.netns, make)

    def join(self, host: Host) -> None:
        """Give ``host`` its ``eth0`` with both addresses, before systemd starts."""

        def plug_in(route: IPRoute) -> None:
            eth0 = {"ifname": "eth0", "net_ns_pid": host.pid, "address": host.mac}
            route.link("add", ifname=host.name, kind="veth", peer=eth0)
            bridge = route.link_lookup(ifname=BRIDGE)[0]
            route.link("set", index=route.link_lookup(ifname=host.name)[0], master=bridge, state="up")

        def address(route: IPRoute) -> None:
            eth0 = route.link_lookup(ifname="eth0")[0]
            route.link("set", index=eth0, state="up")
            route.addr("add", index=eth0, address=host.ipv4, prefixlen=24, broadcast="198.18.0.255")
            route.addr("add", index=eth0, address=host.ipv6, prefixlen=64, family=socket.AF_INET6)

        in_namespace(self.netns, plug_in)
        in_namespace(host.netns, address)

    def leave(self, host: Host) -> None:
        """Take the host's cable away; its namespace's own end would do it too, but some time later."""

        def remove(route: IPRoute) -> None:
            for link in route.link_lookup(ifname=host.name):
                try:
                    route.link("del", index=link)
                except NetlinkError as error:
                    if error.code != errno.ENODEV:  # its namespace was faster
                        raise

        in_namespace(self.netns, remove)

    def unplug(self, host: Host) -> None:
        """Pull the host's cable: it sees the carrier go."""
        in_namespace(self.netns, lambda route: _set_state(route, host, "down"))

    def plug(self, host: Host) -> None:
        """Put the cable back."""
        in_namespace(self.netns, lambda route: _set_state(route, host, "up"))

    @contextmanager
    def capture(self, bpf_filter: str | None = None) -> Iterator[Capture]:
        """See every frame that passes between the hosts while the ``with`` body runs; see ``Capture``."""
        with capturing(self.netns, BRIDGE, bpf_filter) as capture:
            yield capture


def _set_state(route: IPRoute, host: Host, state: str) -> None:
    route.link("set", index=route.link_lookup(ifname=host.name)[0], state=state)


def in_namespace(netns: str, work: Callable[[IPRoute], T]) -> T:
    """``work`` with a route socket of the namespace at path ``netns``.

    setns(2) moves one thread, and this one ends with the work. ``IPRoute(netns=...)`` would fork, and its child runs
    our signal handlers and clean-up when it is ended.
    """

    def there() -> T:
        set_netns(netns)
        with IPRoute() as route:
            return work(route)

    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(there).result()
