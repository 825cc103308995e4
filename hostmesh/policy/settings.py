"""The host's own settings (`/etc/hostmesh/hostmesh.toml`): names, ports, marks. The table in docs/architecture.md."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Marks:
    """Packet mark bits; the low 12 carry the unit's number. Tailscale uses 0xff0000, Kubernetes 0xc000."""

    unit: int = 0x0000_0FFF
    outbound: int = 0x0100_0000
    proxy: int = 0x0200_0000
    inbound: int = 0x0400_0000
    allowed: int = 0x0800_0000
    delivered: int = 0x1000_0000


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports (dns: UDP) of the proxy, the agent's metrics and the controller."""

    outbound: int = 15001
    plaintext: int = 15006
    wire: int = 15008
    dns: int = 15053
    metrics: int = 15020
    controller: int = 15010
    enrolment: int = 15011


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the proxy waits for a client that speaks HTTP, in milliseconds.

    head: for a head to its end, from its first byte. stall: for more of a request's body, and for the client to take a
    piece (64 KiB at most) of an answer. idle: for another request on an open connection.
    """

    head: int = 30_000
    stall: int = 300_000
    idle: int = 3_600_000


@dataclass(frozen=True, slots=True)
class Traces:
    """Where spans go, and how traces are told to whom is called.

    endpoint: URL of a collector that speaks OTLP; empty: nothing is recorded. protocol: grpc | http. propagate: w3c,
    b3, b3multi, beside what the caller itself sent. headers: sent with every export. ca: file of certificates in PEM;
    empty: what the system trusts. queue: spans that wait for the collector at most.
    """

    endpoint: str = ""
    protocol: str = "grpc"
    propagate: tuple[str, ...] = ("w3c",)
    headers: tuple[tuple[str, str], ...] = ()
    ca: str = ""
    queue: int = 2048


@dataclass(frozen=True, slots=True)
class Metrics:
    """How many series the proxy counts in, and after how many milliseconds a quiet one ends.

    A series is a set of labels of `hostmesh_requests_total`: what comes beyond counts as ``other``.
    """

    max_series: int = 4000
    expire: int = 3_600_000


@dataclass(frozen=True, slots=True)
class Overload:
    """When the proxy refuses requests because it has too much to do itself. 0: never for that reason.

    delay: a worker comes so many milliseconds late to what is ready. requests: in flight in the whole proxy.
    """

    delay: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are on the host."""

    policies: str = "/etc/hostmesh/policies"
    systemd: str = "/etc/systemd/system"
    state: str = "/var/lib/hostmesh"
    agent_socket: str = "/run/hostmesh/agent.sock"
    proxy_socket: str = "/run/hostmesh-proxy/control.sock"
    bpffs: str = "/sys/fs/bpf/hostmesh"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one host. vip_ranges come from the controller; route_table also is the rule preference.

    zone: where the host is, for policies that prefer what is near.
    """

    trust_domain: str = "mesh.local"
    host: str = ""
    controllers: tuple[str, ...] = ()
    metrics_address: str = "127.0.0.1"
    route_table: int = 7300
    nflog_group: int = 7300
    marks: Marks = field(default_factory=Marks)
    ports: Ports = field(default_factory=Ports)
    timeouts: Timeouts = field(default_factory=Timeouts)
    paths: Paths = field(default_factory=Paths)
    zone: str = ""
    traces: Traces = field(default_factory=Traces)
    metrics: Metrics = field(default_factory=Metrics)
    overload: Overload = field(default_factory=Overload)
