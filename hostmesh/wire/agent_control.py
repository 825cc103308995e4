"""The messages of the agent's Unix socket (`/run/hostmesh/agent.sock`), between `hostmesh` and `hostmeshd`.

Framed by `codec.py`. One answer a request, with the same ``id``, in order; to `Tap` one after the other. Anyone may
look; `Reconcile` and `Tap` are for root (SO_PEERCRED): what others ask for is not for everyone to see. Times are
seconds since the epoch, 0 for "never".
"""

from hostmesh.wire.proxy_control import Event, RetiredProxy, SvidStatus
from hostmesh.wire.snapshot import Snapshot, Struct

MAX_REQUEST = 4 * 1024 * 1024


class GetStatus(Struct, tag_field="type", tag="get_status"):
    """What is in force on this host? Answered by `Status`."""

    id: int


class GetPlan(Struct, tag_field="type", tag="get_plan"):
    """What `explain` needs: the snapshot in force and the ruleset. Answered by `PlanInForce`, or `Refused`."""

    id: int


class GetDiff(Struct, tag_field="type", tag="get_diff"):
    """What would change? Answered by `Diff`.

    policies: file name (``inventory.service.toml``) to text, laid over the files on disk; an empty text removes the
    file. Empty dict: the files as they are on disk now. Nothing is changed.
    """

    id: int
    policies: dict[str, str] = {}


class Reconcile(Struct, tag_field="type", tag="reconcile"):
    """Root: run the loop now and answer `Done` when it has. `Refused` with the reason when it could not."""

    id: int


class GetCounts(Struct, tag_field="type", tag="get_counts"):
    """What was counted until now? Answered by `Counts`, or by `Refused` while the proxy is away."""

    id: int


class Wanted(Struct):
    """Which records of a tap: those to which all of this applies; empty or 0: all.

    callers, callees, paths: ``*`` stands for any run of characters. statuses: ``503`` or ``5xx``. slow_us: at least.
    failed and denied: one of both is enough where both are given.
    """

    callers: list[str] = []
    callees: list[str] = []
    methods: list[str] = []
    paths: list[str] = []
    statuses: list[str] = []
    slow_us: int = 0
    failed: bool = False
    denied: bool = False


class Tap(Struct, tag_field="type", tag="tap"):
    """Root: show me what these units do from now on. Answered by `Tapped` until the connection ends, or `Refused`."""

    id: int
    units: list[str]
    wanted: Wanted = Wanted()


class Finding(Struct):
    """A policy error: line and column count from 1, 0 when the whole file is meant."""

    code: str
    file: str
    line: int
    column: int
    message: str
    hint: str


class Suggestion(Struct):
    """A caller that audit mode let pass and enforcing would refuse. caller: unit name as policy names it, or the peer.

    peer: SPIFFE ID or ``plaintext``; client: the last address it came from (for ``plaintext``).
    """

    caller: str
    peer: str
    client: str
    port: int
    methods: list[str]
    count: int


class UnitPort(Struct):
    """A declared port; listening: a socket of the unit was seen on it."""

    port: int
    protocol: str
    listening: bool


class UnitStatus(Struct):
    """A unit with a policy.

    state: systemd's ActiveState; empty when systemd doesn't know the unit. in_slice: its processes really are in its
    mesh slice (they come there with a restart, not before). outside: why they are not, though it is active, and the
    remedy; empty when they are. published: the controller knows it to be ready; refused:
    why the controller didn't take it, or sign for it. svid: None until it has one.
    """

    unit: str
    file: str
    state: str
    mode: str
    door: str
    service: str
    number: int
    ports: list[UnitPort]
    in_slice: bool
    published: bool
    refused: str
    svid: SvidStatus | None
    suggestions: list[Suggestion]
    outside: str = ""


class ControllerLink(Struct):
    """The agent's word with the controllers. joined: the host has an identity; error: what failed last, if anything."""

    joined: bool
    connected: bool
    controllers: list[str]
    catalog_revision: int
    host_svid_not_after: int
    error: str


class ProxyLink(Struct):
    """The agent's word with the proxy. revision: of the snapshot in force there. retired: processes before a reload."""

    connected: bool
    version: str
    revision: str
    connections: int
    error: str
    retired: list[RetiredProxy] = []


class Status(Struct, tag_field="type", tag="status"):
    """What is in force.

    revision: of the plan in force; applied: when it last changed. findings: why the policies on disk are not in force
    (empty: they are). failures: what could not be applied, and why. notes: what a person should know besides.
    """

    id: int
    version: str
    host: str
    trust_domain: str
    started: int
    revision: str
    applied: int
    findings: list[Finding]
    failures: list[str]
    notes: list[str]
    controller: ControllerLink
    proxy: ProxyLink
    units: list[UnitStatus]


class PlanInForce(Struct, tag_field="type", tag="plan"):
    """The compiled plan: the proxy's snapshot and the nftables text."""

    id: int
    snapshot: Snapshot
    ruleset: str


class Diff(Struct, tag_field="type", tag="diff"):
    """The named steps that applying would take, in order: (name, unified text). findings: why it would be refused."""

    id: int
    findings: list[Finding]
    steps: list[tuple[str, str]]


class Done(Struct, tag_field="type", tag="done"):
    """The loop has run. ``changed``: the names of the steps that it took; ``micros``: how long it took."""

    id: int
    changed: list[str]
    micros: int


class UnitCounts(Struct):
    """One unit and direction (in | out; empty: nothing was counted yet), since the proxy's start.

    requests: of opaque protocols connections; denied ones are not among them. buckets: as in `TrafficCount`.
    svid_not_after: 0 without an SVID.
    """

    unit: str
    direction: str
    requests: int
    errors: int
    denied: int
    retries: int
    bytes_in: int
    bytes_out: int
    buckets: list[int]
    svid_not_after: int


class Counts(Struct, tag_field="type", tag="counts"):
    """All counters by unit. at: seconds of a steady clock. breakers: those that are open, as ``service: resource``."""

    id: int
    at: float
    connections: int
    breakers: list[str]
    bounds_us: list[int]
    units: list[UnitCounts]


class Tapped(Struct, tag_field="type", tag="tapped"):
    """The first is empty: from now on. ``lost``: records since the last message that nobody could keep."""

    id: int
    events: list[Event]
    lost: int


class Refused(Struct, tag_field="type", tag="refused"):
    """Not done, and why."""

    id: int
    reason: str


Request = GetStatus | GetPlan | GetDiff | GetCounts | Reconcile | Tap
Answer = Status | PlanInForce | Diff | Counts | Done | Tapped | Refused
