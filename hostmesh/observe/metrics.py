"""Turns counters of proxy and kernel, and the agent's state, into Prometheus metrics on `/metrics`.

Every metric's name, labels and help stand here. Labels are bounded: units, services and identities of the mesh,
declared ports, names of routes, classes of codes; how many sets of them there may be, the proxy holds to.
"""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from hostmesh.observe.breakers import breakers
from hostmesh.wire import proxy_control as wire
from hostmesh.wire.proxy_control import Stats, TrafficCount

MAX_SCRAPES = 16
_PAUSE = 0.2
_FLOW = ("direction", "source", "destination", "route", "port", "protocol", "code")
Flow = tuple[str, ...]
_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is shown. kernel: (unit, rule) to packets refused; svids: unit to expiry (epoch seconds).

    key_sets: where token issuers' keys are had from, to seconds since they were, and how many there are.
    agent: gauge name (without prefix) to value; counters: the same for what only grows.
    """

    version: str
    stats: Stats | None
    kernel: dict[tuple[str, str], int] = field(default_factory=dict)
    svids: dict[str, int] = field(default_factory=dict)
    key_sets: dict[str, tuple[float, int]] = field(default_factory=dict)
    agent: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


AGENT_HELP = {
    "policy_errors": "Errors of the policies on disk; not zero: the plan of before is in force",
    "apply_failures": "Steps of the plan that could not be applied at the last run",
    "units": "Meshed units of this host",
    "units_outside": "Units with a policy that run outside their mesh slice: no policy holds for them",
    "controller_connected": "1 while a controller answers",
    "proxy_connected": "1 while the proxy answers",
    "plan_applied_seconds": "When the plan in force was applied, seconds since the epoch",
    "catalog_revision": "Revision of the controller's last word",
    "reconcile_seconds": "How long the last run of the loop took",
    "host_svid_expiry_seconds": "When the host's SVID ends, seconds since the epoch",
    "reconciles": "Runs of the loop since the agent started",
    "journal_lost": "Journal entries that journald did not take",
    "journal_suppressed": "Journal lines not written because of the rate limit",
    "nflog_lost": "Times that the kernel's log of refusals overflowed; its counters are exact",
    "events_dropped": "Events that did not fit between proxy and agent; their counters are exact",
    "taps": "Who looks at units' requests just now (hostmesh tap)",
    "tap_records": "Records that the proxy sent for those who look",
}


PROXY_HELP = {
    "connections": "Open connections",
    "streams": "Open streams of the wire",
    "pooled": "TLS connections in the pools",
    "workers": "Threads that carry traffic",
    "moved": "Connections that went from one of them to another",
    "generations": "Processes that serve: one, and those from before a reload until their last connection ends",
    "memory_bytes": "Resident memory of all of them",
    "series": "Sets of labels of hostmesh_requests_total that are kept",
    "max_series": "How many there may be",
    "tls_handshakes": "TLS handshakes done",
    "dns_answered": "DNS queries of meshed units answered",
    "dns_forwarded": "DNS queries of meshed units passed on",
    "dns_failed": "DNS queries of meshed units refused or failed",
    "slow_clients": "HTTP clients cut off: their request stood still, or they did not take the answer",
    "wire_violations": "Connections of the wire whose peer broke the rules of HTTP/2",
    "mirrored": "Copies of requests sent to mirrors",
    "mirror_dropped": "Copies left out: too many under way, or nowhere to go",
    "events_dropped": "Events that did not fit into the proxy's queue; their counters are exact",
    "traces_exported": "Spans that the collector took",
    "log_lost": "Lines of the proxy itself that journald did not take",
    "troubles": "What is wrong with the proxy, its host (disk, descriptors) or its collector: see hostmesh status",
}
_PROXY_COUNTERS = frozenset(
    {
        "tls_handshakes",
        "dns_answered",
        "dns_forwarded",
        "dns_failed",
        "slow_clients",
        "wire_violations",
        "mirrored",
        "mirror_dropped",
        "moved",
        "events_dropped",
        "log_lost",
        "traces_exported",
    }
)


class MeshCollector(Collector):
    """Asks ``source`` for what is, at each scrape, and renders it."""

    def __init__(self, source: Callable[[], Observed]) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        seen = self._source()
        info = GaugeMetricFamily("hostmesh_info", "Which version runs", labels=("version",))
        info.add_metric((seen.version,), 1)
        yield info
        for name, value in seen.agent.items():
            yield GaugeMetricFamily(f"hostmesh_agent_{name}", AGENT_HELP[name], value=value)
        for name, value in seen.counters.items():
            yield CounterMetricFamily(f"hostmesh_agent_{name}", AGENT_HELP[name], value=value)
        yield _svids(seen.svids)
        yield from _key_sets(seen.key_sets)
        yield _kernel(seen.kernel)
        if seen.stats:
            yield from _proxy(seen.stats)


def _svids(expiry: dict[str, int]) -> Metric:
    metric = GaugeMetricFamily(
        "hostmesh_svid_expiry_seconds", "When a unit's SVID ends, seconds since the epoch", labels=("unit",)
    )
    for unit, not_after in sorted(expiry.items()):
        metric.add_metric((unit,), not_after)
    return metric


def _key_sets(sets: dict[str, tuple[float, int]]) -> Iterator[Metric]:
    ages = GaugeMetricFamily(
        "hostmesh_jwks_age_seconds", "Since a token issuer's keys were read; they stay in force", labels=("jwks",)
    )
    counts = GaugeMetricFamily("hostmesh_jwks_keys", "Keys of a token issuer that are in force", labels=("jwks",))
    for place, (age, keys) in sorted(sets.items()):
        ages.add_metric((place,), age)
        counts.add_metric((place,), keys)
    yield from (ages, counts)


def _kernel(refused: dict[tuple[str, str], int]) -> Metric:
    metric = CounterMetricFamily(
        "hostmesh_kernel_refused_packets", "Packets refused by the ruleset", labels=("unit", "rule")
    )
    for (unit, rule), count in sorted(refused.items()):
        metric.add_metric((unit, rule), count)
    return metric


@dataclass(slots=True)
class _Sum:
    count: int = 0
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    duration_us: int = 0
    buckets: list[int] = field(default_factory=list)
    exemplars: dict[int, wire.Exemplar] = field(default_factory=dict)

    def add(self, row: TrafficCount) -> None:
        self.count += row.count
        self.retries += row.retries
        self.bytes_in += row.bytes_in
        self.bytes_out += row.bytes_out
        self.duration_us += row.duration_us_sum
        if not self.buckets:
            self.buckets = [0] * len(row.buckets)
        self.buckets = [have + more for have, more in zip(self.buckets, row.buckets, strict=True)]
        for exemplar in row.exemplars:
            known = self.exemplars.get(exemplar.bucket, exemplar)
            self.exemplars[exemplar.bucket] = max(known, exemplar, key=lambda one: one.time_ms)


def flows(rows: Iterable[TrafficCount]) -> dict[Flow, _Sum]:
    """The rows summed up by flow: source and destination by direction.

    A call between two units of this host has two rows: ``outbound`` the caller's, ``local`` the callee's.
    """
    sums: dict[Flow, _Sum] = {}
    for row in rows:
        there = row.service or row.peer
        source, destination = (row.unit, there) if row.direction == "outbound" else (row.peer, row.unit)
        flow = (row.direction, source, destination, row.route, str(row.port), row.protocol, row.code_class)
        sums.setdefault(flow, _Sum()).add(row)
    return sums


def _proxy(stats: Stats) -> Iterator[Metric]:
    count = CounterMetricFamily("hostmesh_requests", "HTTP requests, and connections of other protocols", labels=_FLOW)
    retries = CounterMetricFamily("hostmesh_retries", "Tries after the first", labels=_FLOW)
    received = CounterMetricFamily("hostmesh_received_bytes", "Bytes from the one who called", labels=_FLOW)
    sent = CounterMetricFamily("hostmesh_sent_bytes", "Bytes to the one who called", labels=_FLOW)
    duration = HistogramMetricFamily("hostmesh_duration_seconds", "From first byte in to last byte out", labels=_FLOW)
    for flow, total in sorted(flows(stats.traffic).items()):
        count.add_metric(flow, total.count)
        retries.add_metric(flow, total.retries)
        received.add_metric(flow, total.bytes_in)
        sent.add_metric(flow, total.bytes_out)
        duration.add_metric(flow, _cumulative(stats.bounds_us, total), total.duration_us / 1e6)
    yield from (count, retries, received, sent, duration)
    told = "Refusals, by the rule that decided; in audit mode what would have been refused"
    denied = CounterMetricFamily("hostmesh_denied", told, labels=("rule",))
    for rule, number in sorted(stats.denied.items()):
        denied.add_metric((rule,), number)
    yield denied
    yield _flags(stats.flags)
    yield _tls_failures(stats.tls_failures)
    told = "What counted as other, or was asked for in vain, because max_series are kept"
    yield CounterMetricFamily("hostmesh_series_dropped", told, value=stats.series_dropped)
    told = "Spans that did not reach the collector, by why"
    spans = CounterMetricFamily("hostmesh_traces_dropped", told, labels=("reason",))
    for reason, number in sorted(stats.traces_dropped.items()):
        spans.add_metric((reason,), number)
    yield spans
    yield from breakers(stats.circuits)
    for name, number in sorted(stats.gauges.items()):
        family = CounterMetricFamily if name in _PROXY_COUNTERS else GaugeMetricFamily
        yield family(f"hostmesh_proxy_{name}", PROXY_HELP.get(name, "What the proxy says of itself"), value=number)


def _flags(flags: dict[str, dict[str, dict[str, int]]]) -> Metric:
    told = "What was done to requests and connections, in one word: see docs/operations.md"
    metric = CounterMetricFamily("hostmesh_flags", told, labels=("unit", "service", "flag"))
    for unit, services in sorted(flags.items()):
        for service, words in sorted(services.items()):
            for flag, number in sorted(words.items()):
                metric.add_metric((unit, service, flag), number)
    return metric


def _tls_failures(failures: dict[str, dict[str, int]]) -> Metric:
    metric = CounterMetricFamily(
        "hostmesh_proxy_tls_failures",
        "Connections between hosts that were refused or ended, by our side and the reason",
        labels=("side", "reason"),
    )
    for side, reasons in sorted(failures.items()):
        for reason, number in sorted(reasons.items()):
            metric.add_metric((side, reason), number)
    return metric


def _cumulative(bounds_us: list[int], sums: _Sum) -> list[_Bucket]:
    total = 0
    out: list[_Bucket] = []
    bounds = [*(f"{bound / 1e6:g}" for bound in bounds_us), "+Inf"]
    for number, (bound, count) in enumerate(zip(bounds, sums.buckets, strict=True)):
        total += count
        seen = sums.exemplars.get(number)
        out.append((bound, float(total), _exemplar(seen)) if seen else (bound, float(total)))
    return out


def _exemplar(seen: wire.Exemplar) -> Exemplar:
    """Shown to who asks for OpenMetrics."""
    return Exemplar({"trace_id": seen.trace_id}, seen.duration_us / 1e6, seen.time_ms / 1e3)


class _Request(WSGIRequestHandler):
    """Says nothing of itself, and waits for nobody long."""

    timeout = 10

    def log_message(self, *_: object) -> None:
        """Scrapes are not worth a line."""


class _Server(ThreadingMixIn, WSGIServer):
    """At most `MAX_SCRAPES` at once, so that nobody can use up the agent's threads and descriptors."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = BoundedSemaphore(MAX_SCRAPES)
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Where no descriptor is left, waiting is all that helps: else the caller would ask again at once, for ever."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (socketserver's words)
        """In a thread of its own, when there is a place."""
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Gives the place back at the end, however it ended."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


def serve(source: Callable[[], Observed], address: str, port: int) -> Callable[[], None]:
    """Serve `/metrics` on a thread of its own until the returned function is called. ``source`` runs on that thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MeshCollector(source))
    server = make_server(address, port, make_wsgi_app(registry), _Server, handler_class=_Request)
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
