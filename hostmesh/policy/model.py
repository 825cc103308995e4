"""What a person wrote, read and checked: frozen values, every one with the place where it stands.

`validate.py` makes them, `plan/` and `authorize.py` read them. Durations are milliseconds.
"""

from dataclasses import dataclass
from enum import StrEnum

from hostmesh.errors import Place
from hostmesh.names import UnitName
from hostmesh.wire.snapshot import Route


class Protocol(StrEnum):
    """What the application speaks on a port: its requests are read, or its bytes carried as they are.

    ``auto``: what each connection's first bytes tell.
    """

    HTTP = "http"
    HTTP2 = "http2"
    GRPC = "grpc"
    TCP = "tcp"
    TLS = "tls"
    AUTO = "auto"

    @property
    def is_read(self) -> bool:
        """Are requests seen, and judged one by one?"""
        return self in (Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC)

    @property
    def can_be_read(self) -> bool:
        """May requests be seen, where a connection turns out to carry some?"""
        return self.is_read or self is Protocol.AUTO

    @property
    def can_be_tls(self) -> bool:
        """May clients ask for a server by its name in TLS?"""
        return self in (Protocol.TLS, Protocol.AUTO)


class ClientAddress(StrEnum):
    """Which source address the application sees: the client's own, or loopback."""

    AUTO = "auto"
    KEEP = "keep"
    LOCAL = "local"


class Mode(StrEnum):
    """``enforce`` refuses what is not allowed; ``audit`` records what it would refuse, and lets it pass."""

    ENFORCE = "enforce"
    AUDIT = "audit"


class AccessLog(StrEnum):
    """Which requests get a line in the unit's journal."""

    ALL = "all"
    ERRORS = "errors"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Port:
    """A port that the unit serves, 1..65535."""

    place: Place
    number: int
    protocol: Protocol = Protocol.TCP
    client_address: ClientAddress = ClientAddress.AUTO


ClaimValue = str | int | bool


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """A rule's ``jwt``: what a token must say. Issuer empty: any that the unit believes.

    ``claims``: a claim's name, and the values of which one will do.
    """

    place: Place
    issuer: str = ""
    audience: tuple[str, ...] = ()
    claims: tuple[tuple[str, tuple[ClaimValue, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """An ``[[inbound.jwt]]``: whose tokens are believed, by which keys, and what the application gets of them.

    ``token``: ``header:NAME`` or ``cookie:NAME``. ``headers``: header and claim. ``algorithms``: of keys without any.
    """

    place: Place
    issuer: str
    audience: tuple[str, ...]
    jwks: str
    token: str = "header:authorization"  # noqa: S105 a place
    forward: bool = True
    leeway_ms: int = 60_000
    algorithms: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class InboundRule:
    """An ``[[inbound.allow]]`` or ``[[inbound.deny]]``: all that is given must match; empty means any.

    ``callers`` are unit names (``orders``), globs of them (``legacy-*``) or SPIFFE IDs with globs. ``audit``: recorded,
    not in force.
    """

    place: Place
    callers: tuple[str, ...]
    ports: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    jwt: TokenMatch | None = None
    audit: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """An ``[[inbound.limit]]``: ``rule`` says of what. ``requests`` in ``window_ms``, ``burst`` of them at once.

    ``concurrent``: at a time. 0: any. per: caller | all.
    """

    rule: InboundRule
    requests: int = 0
    window_ms: int = 0
    burst: int = 0
    concurrent: int = 0
    per: str = "caller"


@dataclass(frozen=True, slots=True)
class Authorize:
    """An ``[inbound.authorize]``: the service that is asked about requests. on_error: deny | allow."""

    place: Place
    service: str
    timeout_ms: int = 200
    on_error: str = "deny"


@dataclass(frozen=True, slots=True)
class PlaintextRule:
    """Callers without identity, named one by one: networks in CIDR form, or ``local`` (this host's processes)."""

    place: Place
    sources: tuple[str, ...]
    ports: tuple[int, ...]
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutboundRule:
    """One entry of ``[outbound] allow``: exactly one of service, host or network is set; port 0 means any."""

    place: Place
    service: str = ""
    host: str = ""
    network: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Retries:
    """How callers try again. ``budget``: retries as a share of requests, 0..1. ``backoff_ms`` 0: by default."""

    place: Place
    attempts: int = 2
    per_try_timeout_ms: int = 0
    on: tuple[str, ...] = ("connect-failure",)
    budget: float = 0.2
    non_idempotent: bool = False
    backoff_ms: int = 0
    max_backoff_ms: int = 0


@dataclass(frozen=True, slots=True)
class Hedge:
    """When callers ask another endpoint, too. ``attempts``: with the first."""

    after_ms: int
    attempts: int = 2
    non_idempotent: bool = False


@dataclass(frozen=True, slots=True)
class Breaker:
    """When callers leave the service, or one of its endpoints, alone. 0: no limit, no ejection."""

    place: Place
    max_connections: int = 0
    max_pending: int = 0
    max_requests: int = 0
    max_retries: int = 0
    consecutive_errors: int = 0
    eject_ms: int = 30_000
    max_ejected: float = 0.5


@dataclass(frozen=True, slots=True)
class Balance:
    """How an endpoint is chosen. ``on``, of consistent hashing: ``header:NAME``, ``cookie:NAME`` or ``source``.

    ``bound`` 0: none.
    """

    by: str = "least-request"
    on: str = ""
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """How callers behave towards the service; it belongs to the service's owner. 0 means no time limit.

    ``prefer``: any | near. ``panic``: a share of endpoints. ``place``: None where the file has no ``[traffic]``. Routes
    are in the words of the snapshot, each with its rule. ``lines``: on which line each word stands.
    """

    timeout_ms: int = 0
    retries: Retries | None = None
    balance: Balance = Balance()
    place: Place | None = None
    prefer: str = "any"
    slow_start_ms: int = 0
    panic: float = 0.0
    breaker: Breaker | None = None
    connect_timeout_ms: int = 0
    idle_timeout_ms: int = 0
    routes: tuple[Route, ...] = ()
    lines: tuple[tuple[str, int], ...] = ()
    hedge: Hedge | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Which traces are recorded: a share of those begun here, 0..1, and what fails, whoever began it."""

    share: float = 0.01
    errors: bool = False


@dataclass(frozen=True, slots=True)
class Observe:
    """What is recorded."""

    access_log: AccessLog = AccessLog.ERRORS
    trace: Trace = Trace()


@dataclass(frozen=True, slots=True)
class Policy:
    """One unit's policy: one file, named after the unit."""

    place: Place
    unit: UnitName
    service: str
    ports: tuple[Port, ...]
    mode: Mode
    inbound_place: Place
    allow: tuple[InboundRule, ...]
    deny: tuple[InboundRule, ...]
    plaintext: tuple[PlaintextRule, ...]
    traffic: Traffic
    outbound: tuple[OutboundRule, ...] | None
    observe: Observe
    jwt: tuple[TokenIssuer, ...] = ()
    limits: tuple[Limit, ...] = ()
    authorize: Authorize | None = None
