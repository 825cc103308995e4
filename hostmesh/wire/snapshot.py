"""The proxy's snapshot: what the plan says to the data plane. Values only; JSON on the wire.

The same words stand in `proxy/core/src/snapshot.rs`; `tests/vectors/snapshot/*.json` are read by both sides. Unknown
fields are errors on both sides: agent and proxy are of one version. Durations are in milliseconds, certificates are
base64 DER.
"""

from typing import dataclass_transform

import msgspec

SNAPSHOT_VERSION = 1


@dataclass_transform(frozen_default=True)
class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of every wire value: immutable, and strict about unknown fields."""


class Marks(Struct):
    """Packet mark bits (docs/architecture.md, table of marks). ``unit`` masks the unit's number."""

    unit: int
    outbound: int
    proxy: int
    inbound: int


class Listeners(Struct):
    """The proxy's own ports. ``outbound``, ``plaintext`` and ``dns`` on both loopback addresses, ``wire`` on all."""

    outbound: int
    plaintext: int
    wire: int
    dns: int


class Timeouts(Struct):
    """How long clients that speak HTTP are waited for: `Timeouts` of `hostmesh/policy/settings.py`."""

    head_ms: int
    stall_ms: int
    idle_ms: int


class Port(Struct):
    """A port that a local unit serves. client_address: auto | keep | local."""

    port: int
    protocol: str
    client_address: str


class TokenMatch(Struct):
    """What a rule asks of a token. issuer: empty for any. claims: name, and the values of which one will do."""

    issuer: str = ""
    audience: list[str] = []
    claims: list[tuple[str, list[str | int | bool]]] = []


class TokenKey(Struct):
    """A public key of an issuer. kid: empty where it has none. key: base64 DER (SubjectPublicKeyInfo, RFC 5280)."""

    kid: str
    algorithms: list[str]
    key: str


class TokenIssuer(Struct):
    """Whose tokens a unit believes, and by which keys: an ``[[inbound.jwt]]``, ``rule`` is its ``file:line``.

    ``token``: where it stands, ``header:NAME`` or ``cookie:NAME``. ``forward``: the application gets it too.
    ``headers``: header, in lower case, and the claim that the application gets in it.
    """

    rule: str
    issuer: str
    audience: list[str]
    keys: list[TokenKey]
    token: str
    forward: bool
    leeway_ms: int
    headers: list[tuple[str, str]]


class InboundRule(Struct):
    """All lists that are not empty must match. ``callers``: SPIFFE IDs, ``*`` matches any run of characters.

    ``paths``: ``/products/*`` matches what begins with ``/products/``; without ``*`` the whole path; matched against
    the path's normal form. ``headers``: name in lower case and exact value. ``jwt``: the request brings a token that is
    good, and says this. ``audit``: recorded, not in force.
    """

    rule: str
    callers: list[str]
    ports: list[int] = []
    methods: list[str] = []
    paths: list[str] = []
    headers: list[tuple[str, str]] = []
    jwt: TokenMatch | None = None
    audit: bool = False


class Limit(Struct):
    """How much of a unit callers may have. 0: any. per: caller | all.

    of: what it holds for; no callers: all of them. ``requests`` in ``window_ms``, ``burst`` of them at once;
    ``concurrent`` at a time.
    """

    of: InboundRule
    requests: int
    window_ms: int
    burst: int
    concurrent: int
    per: str


class Authorize(Struct):
    """The service that is asked about what rules and limits let pass. on_error: deny | allow what it leaves open."""

    rule: str
    service: str
    timeout_ms: int
    on_error: str


class PlaintextRule(Struct):
    """Callers without identity: CIDR networks, or ``local``."""

    rule: str
    sources: list[str]
    ports: list[int]
    methods: list[str] = []
    paths: list[str] = []


class OutboundRule(Struct):
    """Exactly one of service, host, network is not empty; port 0 means any."""

    rule: str
    service: str = ""
    host: str = ""
    network: str = ""
    port: int = 0


class Unit(Struct):
    """A meshed unit of this host.

    ``deliver``: the addresses to try for the application, in order: where it was seen to listen, else the host's
    addresses and loopback. ``allow``/``deny``/``plaintext``: deny first, then allow, else refused by ``rule_default``.
    ``outbound``: None means anything goes. mode: enforce | audit. access_log: all | errors | none. revoked: its
    identity was taken back; it serves nobody, and calls no service. trace: the share of traces begun here that are
    recorded; trace_errors: and whatever fails.
    """

    unit: str
    number: int
    spiffe_id: str
    sni: str
    service: str
    ports: list[Port]
    deliver: list[str]
    mode: str
    allow: list[InboundRule]
    deny: list[InboundRule]
    plaintext: list[PlaintextRule]
    rule_default: str
    outbound: list[OutboundRule] | None
    rule_outbound_default: str
    access_log: str
    trace: float
    trace_errors: bool = False
    revoked: bool = False
    jwt: list[TokenIssuer] = []
    limits: list[Limit] = []
    authorize: Authorize | None = None


class Retries(Struct):
    """on: 5xx | gateway-error | connect-failure | reset | retriable-4xx, and words of gRPC. Times of 0: none said."""

    attempts: int
    per_try_timeout_ms: int
    on: list[str]
    budget: float
    non_idempotent: bool
    backoff_ms: int = 0
    max_backoff_ms: int = 0


class Hedge(Struct):
    """Another endpoint is asked, too, when no head of a response came for so long. attempts: with the first."""

    after_ms: int
    attempts: int
    non_idempotent: bool = False


class ConsistentHash(Struct):
    """on: ``header:NAME`` (in lower case), ``cookie:NAME`` or ``source``. bound 0: none."""

    on: str
    bound: float


class Breaker(Struct):
    """When callers leave the service, or one of its endpoints, alone. 0: no limit, no ejection. ``rule``: file:line."""

    max_connections: int
    max_pending: int
    max_requests: int
    max_retries: int
    consecutive_errors: int
    eject_ms: int
    max_ejected: float
    rule: str


class RouteMatch(Struct):
    """All that is not empty must fit; ``*`` as a value: it is there. Names of headers in lower case.

    path: ``/products/7``, ``/products/*`` or ``/products/{id}``, against the path's normal form. sni: the route is for
    connections of TLS that ask for this server (``a.example.org``, ``*.example.org``, ``*``), and for no request.
    """

    path: str = ""
    methods: list[str] = []
    headers: list[tuple[str, str]] = []
    query: list[tuple[str, str]] = []
    sni: str = ""


class Share(Struct):
    """A service, and its weight among the others."""

    service: str
    weight: int


class Mirror(Struct):
    """A copy of ``percent`` of the requests goes to another service; its answer is thrown away."""

    to: str
    percent: float
    max_pending: int


class Redirect(Struct):
    """Answered with another place to ask: a path, or an http URL with one, filled from the match."""

    to: str
    status: int


class Rewrite(Struct):
    """Asked for under another path, filled from the match, or host; empty: as it came."""

    path: str = ""
    host: str = ""


class Respond(Struct):
    """Answered by the proxy."""

    status: int
    body: str = ""
    headers: list[tuple[str, str]] = []


class Inject(Struct):
    """Trouble on purpose: so many percent are held back, so many answered with ``abort``. 0: none."""

    delay_ms: int = 0
    delay_percent: float = 0
    abort: int = 0
    abort_percent: float = 0


class HeaderEdits(Struct):
    """What is done to a head's fields: taken out, put in place of all of the name, put behind them."""

    set: list[tuple[str, str]] = []
    add: list[tuple[str, str]] = []
    remove: list[str] = []


class Route(Struct):
    """What some requests to a service meet; the first that fits. ``rule``: file:line.

    to: none: the service itself. sticky: cookie:NAME | header:NAME | source.
    timeout 0, retries and hedge None: the service's.
    Of redirect, respond and all else only one is there, beside ``fault``.
    """

    name: str
    rule: str
    match: RouteMatch = RouteMatch()
    to: list[Share] = []
    sticky: str = ""
    mirror: Mirror | None = None
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    respond: Respond | None = None
    fault: Inject | None = None
    request_headers: HeaderEdits | None = None
    response_headers: HeaderEdits | None = None
    timeout_ms: int = 0
    retries: Retries | None = None
    hedge: Hedge | None = None


class Traffic(Struct):
    """How callers behave towards the service. Times of 0: none. ``rule``: file:line that says so, may be empty.

    balance: least-request | round-robin | ewma | consistent-hash (with ``hash``). prefer: any | near. lines: on which
    line of the file each word stands; for people, the proxy throws it away.
    """

    timeout_ms: int
    retries: Retries | None
    balance: str
    rule: str
    routes: list[Route] = []
    connect_timeout_ms: int = 0
    idle_timeout_ms: int = 0
    breaker: Breaker | None = None
    hash: ConsistentHash | None = None
    prefer: str = "any"
    slow_start_ms: int = 0
    panic: float = 0.0
    lines: dict[str, int] = {}
    hedge: Hedge | None = None


class ServicePort(Struct):
    """Callers of the VIP say ``port``; it goes to the endpoints' ``target`` port."""

    port: int
    target: int
    protocol: str


class Endpoint(Struct):
    """One workload that serves a service, and its host's addresses. One of this host has host == `Snapshot.host`.

    zone: its host's, empty where none is said.
    """

    unit: str
    host: str
    spiffe_id: str
    sni: str
    addresses: list[str]
    wire_port: int
    zone: str = ""


class Service(Struct):
    """What callers can call: as ``name`` or ``name.mesh``, by VIP, or by an endpoint's own address and target port."""

    name: str
    vips: list[str]
    ports: list[ServicePort]
    traffic: Traffic
    endpoints: list[Endpoint]


class Revoked(Struct):
    """Certificates that count for nothing. kind: host (``name``: its DNS SAN), unit (SPIFFE ID), serial (hex).

    begun_by: only those whose validity began up to then, seconds since the epoch; 0: all, whenever made.
    """

    kind: str
    name: str
    begun_by: int
    reason: str


class Traces(Struct):
    """The collector of traces: `Traces` of `hostmesh/policy/settings.py`, with its endpoint taken apart.

    addresses: where ``host`` leads. ca: what its chain must end in; empty: what the system trusts.
    """

    endpoint: str
    protocol: str
    tls: bool
    host: str
    port: int
    path: str
    addresses: list[str]
    headers: list[tuple[str, str]] = []
    ca: list[str] = []
    queue: int = 2048


class Overload(Struct):
    """When the proxy refuses requests: `Overload` of `hostmesh/policy/settings.py`. 0: never for that reason."""

    delay_ms: int = 0
    requests: int = 0


class Metrics(Struct):
    """How many series of counters the proxy keeps: `Metrics` of `hostmesh/policy/settings.py`."""

    max_series: int = 4000
    expire_ms: int = 3_600_000


class Snapshot(Struct):
    """All that the proxy knows. ``revision`` is the digest of the rest: equal content, equal revision."""

    version: int
    revision: str
    trust_domain: str
    host: str
    addresses: list[str]
    marks: Marks
    listeners: Listeners
    timeouts: Timeouts
    trust_bundle: list[str]
    units: list[Unit]
    services: list[Service]
    revoked: list[Revoked] = []
    zone: str = ""
    propagate: list[str] = msgspec.field(default_factory=lambda: ["w3c"])
    traces: Traces | None = None
    metrics: Metrics = Metrics()
    overload: Overload = Overload()
