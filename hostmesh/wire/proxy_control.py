"""The messages between agent and proxy, on the proxy's Unix socket (`/run/hostmesh-proxy/control.sock`).

A frame is a 4-byte big-endian length (at most 64 MiB) and one JSON object whose ``type`` names the message. The agent
asks, the proxy answers with the same ``id``; ``events`` and ``tapped`` come unasked. The proxy never waits for the
agent. One agent at a time: a new connection takes over from the one before.
"""

from hostmesh.wire.snapshot import Snapshot, Struct

MAX_FRAME = 64 * 1024 * 1024
TAP_SECONDS = 5.0


class SetSnapshot(Struct, tag_field="type", tag="snapshot"):
    """Agent: make this the configuration in force. Answered by `Ack` or `Nack`; a refused one changes nothing."""

    id: int
    snapshot: Snapshot


class GetCsr(Struct, tag_field="type", tag="get_csr"):
    """Agent: make a new key for this unit of the snapshot, and give the request. Answered by `Csr` or `Nack`."""

    id: int
    unit: str


class SetSvid(Struct, tag_field="type", tag="set_svid"):
    """Agent: the chain (base64 DER, leaf first) for the key of the last `Csr` of this unit. `Ack` or `Nack`."""

    id: int
    unit: str
    chain: list[str]


class GetStatus(Struct, tag_field="type", tag="get_status"):
    """Agent: what is in force? Answered by `Status`."""

    id: int


class GetStats(Struct, tag_field="type", tag="get_stats"):
    """Agent: all counters. Answered by `Stats`."""

    id: int


class Tap(Struct, tag_field="type", tag="tap"):
    """Agent: somebody looks at these units, and at no others, for the next `TAP_SECONDS`. Answered by `Ack`."""

    id: int
    units: list[str]


class Ack(Struct, tag_field="type", tag="ack"):
    """Proxy: done."""

    id: int


class Nack(Struct, tag_field="type", tag="nack"):
    """Proxy: refused, nothing changed, and why."""

    id: int
    reason: str


class Csr(Struct, tag_field="type", tag="csr"):
    """Proxy: a PKCS#10 request (RFC 2986), base64 DER, P-256; the key stays in the proxy."""

    id: int
    unit: str
    csr: str


class SvidStatus(Struct):
    """An SVID in force: serial in hex, times in seconds since the epoch."""

    unit: str
    spiffe_id: str
    serial: str
    not_before: int
    not_after: int


class RetiredProxy(Struct):
    """A process from before a reload: it serves the connections that it has to their end. memory: resident."""

    pid: int
    started: int
    version: str
    connections: int
    memory_bytes: int


class Status(Struct, tag_field="type", tag="status"):
    """Proxy: what is in force. ``revision`` is empty before the first snapshot; started: seconds since the epoch.

    troubles: what is wrong with the proxy itself, its host (disk, descriptors) or its collector of traces, each with
    what helps.
    """

    id: int
    version: str
    revision: str
    started: int
    workers: int
    connections: int
    svids: list[SvidStatus]
    troubles: list[str] = []
    retired: list[RetiredProxy] = []


class Exemplar(Struct):
    """The last recorded trace of a bucket, by its number. time: ms since the epoch."""

    bucket: int
    trace_id: str
    duration_us: int
    time_ms: int


class TrafficCount(Struct):
    """One row of counters. All counts are since the proxy's start; a reload is none, all processes count together.

    direction: inbound | outbound | local. peer: SPIFFE ID, ``plaintext`` or ``passthrough``. code_class: 2xx … 5xx for
    HTTP, ``ok``/``error`` for TCP, ``denied`` for refusals. ``route``: of the service's policy, as its caller took it;
    empty: none. ``buckets``: counts, not cumulative, of the durations up to
    each of `Stats.bounds_us`, and one more for the rest; ``exemplars``: of some of them.
    """

    unit: str
    direction: str
    peer: str
    service: str
    port: int
    protocol: str
    code_class: str
    count: int
    retries: int
    bytes_in: int
    bytes_out: int
    duration_us_sum: int
    buckets: list[int]
    route: str = ""
    exemplars: list[Exemplar] = []


class Circuit(Struct):
    """What the callers of a service on this host have in common. By resource: connections, pending, requests, retries.

    ``open``: 1 where the breaker is. ``unpaid``: retries that the budget did not pay for. Since the start: refused,
    ejections, unpaid.
    """

    limits: dict[str, int]
    in_use: dict[str, int]
    open: dict[str, int]
    refused: dict[str, int]
    ejected: int
    ejections: int
    unpaid: int


class Stats(Struct, tag_field="type", tag="stats"):
    """Proxy: counters. ``denied`` maps rule to count; ``gauges``: connections, streams, pools, workers, memory.

    ``tls_failures``: side (the proxy's own: client | server) to reason to count. ``traces_dropped``: spans that did not
    reach the collector, reason to count. ``circuits``: by service. ``flags``: what was done to requests and
    connections: unit, service, flag, number. ``series_dropped``: what counted as ``other`` for want of room.
    """

    id: int
    bounds_us: list[int]
    traffic: list[TrafficCount]
    denied: dict[str, int]
    gauges: dict[str, int]
    tls_failures: dict[str, dict[str, int]] = {}
    traces_dropped: dict[str, int] = {}
    circuits: dict[str, Circuit] = {}
    flags: dict[str, dict[str, dict[str, int]]] = {}
    series_dropped: int = 0


class Event(Struct):
    """Something for a unit's journal.

    kind: request | connection | denied | retry | error | wire | breaker | token (by a key that is not known: ``rule``
    names its issuer). verdict: allow | deny | audit-deny | audit-allow. direction: inbound | outbound | local.
    ``status`` 0 when there is none; times: ns since the epoch, durations us. ``tries`` counts from 1.
    ``route``: the route of the service that it took; ``flag``: what was done to it, in one word; ``sni``: the server
    that a client of TLS asked for. Empty: none, nothing.
    ``endpoint``: where its last try went, ``unit on host``; empty where it went nowhere, or that is not known here.
    """

    time_ns: int
    kind: str
    unit: str
    direction: str
    verdict: str
    rule: str
    peer: str
    service: str
    port: int
    protocol: str
    message: str
    client: str = ""
    method: str = ""
    path: str = ""
    status: int = 0
    grpc_status: int | None = None
    tries: int = 0
    duration_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: str = ""
    span_id: str = ""
    route: str = ""
    flag: str = ""
    endpoint: str = ""
    sni: str = ""


class Events(Struct, tag_field="type", tag="events"):
    """Proxy, unasked: a batch; ``dropped`` events did not fit since the last batch (their counters are exact)."""

    events: list[Event]
    dropped: int


class Tapped(Struct, tag_field="type", tag="tapped"):
    """Proxy, unasked: what the units did that somebody looks at; ``dropped`` did not fit since the last message."""

    events: list[Event]
    dropped: int


Request = SetSnapshot | GetCsr | SetSvid | GetStatus | GetStats | Tap
Unasked = Events | Tapped
Answer = Ack | Nack | Csr | Status | Stats | Unasked
