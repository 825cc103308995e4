"""What is seen of traces through two real hosts: spans in a real collector, headers at the applications.

shop -> orders (h1) -> inventory (h2) -> web (h2); orders and inventory pass on what they get of a trace. The collector
runs on the host outside the mesh.
"""

import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostmesh.policy.hostfile import PLACE
from tests.lab.collector import GRPC, HTTP, Collector, Span
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.told import in_status, metric, not_in_status, total
from tests.mesh.world import SCRAPER, World
from tests.mesh.wrk import all_answered

PASSES_ON = Path(__file__).with_name("passes_on.py")
CLIENT, SERVER, INTERNAL = 3, 2, 1
QUEUE = 256
SLACK = 1_000_000  # ns: each time is the wall clock's, looked at by itself
NOT_REACHED = "spans do not reach the collector"

# Takes connections, and answers nothing.
SILENT = f"""
import socket, time
s = socket.create_server(("0.0.0.0", {GRPC}))
kept = []
while True: kept.append(s.accept())
"""


@dataclass(frozen=True)
class Traced:
    """A world whose proxies send spans to a collector."""

    world: World
    collector: Collector
    settings: dict[str, str]

    def configure(self, text: str) -> None:
        """Give both hosts this ``[traces]``; returns when their proxies have it."""
        for host in (self.world.h1, self.world.h2):
            host.write(PLACE, self.settings[host.name] + text)
        wanted = json.dumps(re.findall(r"propagate = (\[.*\])", text)[:1] or ['["w3c"]'])
        for host in (self.world.h1, self.world.h2):
            wait_until(lambda host=host: self._has(host, text, json.loads(wanted)[0]), f"{host.name} has {text}")  # type: ignore[misc]

    def _has(self, host: Host, text: str, propagate: str) -> bool:
        snapshot = in_force.snapshot(host)
        endpoint = re.findall(r'endpoint = "(.*)"', text)
        traces = snapshot["traces"] or {"endpoint": None}
        return traces["endpoint"] == (endpoint[0] if endpoint else None) and snapshot["propagate"] == json.loads(
            propagate
        )

    def get(self, url: str, *headers: str) -> Any:  # noqa: ANN401 (JSON)
        """What a service answers to shop."""
        flags = [flag for header in headers for flag in ("-H", header)]
        return json.loads(self.world.shop("curl", "-sS", *flags, url).must().stdout)

    def trace(self, trace: str, until: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans of a trace, once there is all that is waited for."""

        def there() -> list[Span] | None:
            spans = self.collector.spans(trace)
            return spans if until(spans) else None

        try:
            return wait_until(there, f"the spans of {trace}", 5.0, 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{tree(self.collector.spans(trace))}") from error


@contextlib.contextmanager
def traced(world: World) -> Iterator[Traced]:
    """Put the collector and services that pass on in place; all as it was after the ``with``."""
    collector = Collector(world.outsider)
    collector.install()
    hosts = (world.h1, world.h2)
    with contextlib.ExitStack() as stack:
        of = Traced(world, collector, {host.name: host.read(PLACE) for host in hosts})
        stack.callback(of.configure, "")
        for host, unit, port, to in (
            (world.h1, "orders", 8081, "http://inventory"),
            (world.h2, "inventory", 8080, "http://web"),
        ):
            stack.enter_context(_passing_on(host, unit, port, to))
        policy = world.policy("nginx.service").replace('"shop"]', '"shop", "inventory"]')
        stack.enter_context(world.changed_policy(world.h2, "nginx.service", policy))
        shop = world.policy("shop.service") + "[observe]\ntrace = 1.0\n"
        stack.enter_context(world.changed_policy(world.h1, "shop.service", shop))
        of.configure(grpc())
        yield of


@contextlib.contextmanager
def _passing_on(host: Host, unit: str, port: int, to: str) -> Iterator[None]:
    folder = f"/etc/systemd/system/{unit}.service.d"
    host.write("/opt/demo/passes_on.py", PASSES_ON.read_text())
    command = f"/usr/bin/python3 -u /opt/demo/passes_on.py {port} {to} {'cold' if unit == 'inventory' else ''}"
    host.write(f"{folder}/60-passes-on.conf", f"[Service]\nExecStart=\nExecStart={command}\n")
    try:
        _restarted(host, unit, port)
        yield
    finally:
        host.exec(["rm", f"{folder}/60-passes-on.conf"]).must()
        _restarted(host, unit, port)


def _restarted(host: Host, unit: str, port: int) -> None:
    host.systemctl("daemon-reload")
    host.systemctl("restart", f"{unit}.service")
    listens = ["ss", "-Hltn", f"sport = :{port}"]
    wait_until(lambda: host.exec(listens).must().stdout, f"{unit} listens")


def grpc(more: str = "") -> str:
    """``[traces]`` with the collector by gRPC."""
    return f'\n[traces]\nendpoint = "http://{SCRAPER}:{GRPC}"\nqueue = {QUEUE}\n{more}'


def http(more: str = "") -> str:
    """The same by HTTP."""
    return f'\n[traces]\nendpoint = "http://{SCRAPER}:{HTTP}/v1/traces"\nprotocol = "http"\n{more}'


def tree(spans: list[Span]) -> str:
    """The trace as a person would draw it."""
    ids = {span.id for span in spans}

    def lines(parent: str, depth: int) -> Iterator[str]:
        for span in sorted(spans, key=lambda span: span.begun):
            is_root = depth == 0 and span.parent not in ids
            if span.parent == parent or is_root:
                status = span.attributes.get("http.response.status_code", "")
                kind = {CLIENT: "client", SERVER: "server"}.get(span.kind, "")
                took = f"{(span.ended - span.begun) / 1e6:.1f} ms"
                yield f"{'  ' * depth}{span.service} {span.name} {kind} {status} {took}"
                yield from lines(span.id, depth + 1)

    return "\n".join(lines("none", 0))


def below(spans: list[Span], parent: str, unit: str, kind: int, name: str = "GET") -> list[Span]:
    """The spans of a unit right below one, in their order."""
    fits = (s for s in spans if (s.parent, s.unit, s.kind, s.name) == (parent, f"{unit}.service", kind, name))
    return sorted(fits, key=lambda span: span.begun)


def status(span: Span) -> int:
    """Of its response."""
    found: int = span.attributes["http.response.status_code"]
    return found


def _new_trace() -> tuple[str, str]:
    now = time.monotonic_ns()
    return f"{now:032x}", f"{now:016x}"


def one_trace(t: Traced) -> str:
    """shop -> orders -> inventory -> web is one trace with right parents, the failed try and the handshake in it"""
    t.world.h1.systemctl("restart", "hostmesh-proxy.service")  # no connection is left in a pool
    wait_until(lambda: t.world.status(t.world.h1)["proxy"]["connected"], "the agent has the proxy again")
    trace, caller = _new_trace()
    answer = t.get(
        f"http://orders:8081/products/cold-{trace}",
        f"traceparent: 00-{trace}-{caller}-01",
        "baggage: k=v",
        "tracestate: a=b",
    )
    assert answer["got"]["baggage"] == answer["next"]["got"]["baggage"] == "k=v"
    assert answer["got"]["tracestate"] == answer["next"]["got"]["tracestate"] == "a=b"
    spans = t.trace(trace, lambda spans: len([s for s in spans if s.kind != INTERNAL]) >= 11)
    print(tree(spans))
    parent = caller
    for unit, to, statuses in (
        ("shop", "orders", [200]),
        ("orders", "inventory", [503, 200]),
        ("inventory", "nginx", [404]),
    ):
        (call,) = below(spans, parent, unit, CLIENT)
        tries = below(spans, call.id, unit, CLIENT)
        assert [status(one) for one in tries] == statuses, tree(spans)
        servers = [below(spans, one.id, to, SERVER) for one in tries]
        assert [[status(one) for one in served] for served in servers] == [[code] for code in statuses], tree(spans)
        assert [one.attributes.get("http.request.resend_count") for one in tries] == [None, 1][: len(tries)]
        assert tries[0].failed == (statuses[0] >= 400)
        parent = servers[-1][0].id
    (call,) = below(spans, spans_of(spans, "orders", SERVER).id, "orders", CLIENT)
    first = below(spans, call.id, "orders", CLIENT)[0]
    (connect,) = below(spans, first.id, "orders", INTERNAL, "TCP connect")
    (shake,) = below(spans, first.id, "orders", INTERNAL, "TLS handshake")
    assert connect.attributes["network.peer.address"] == t.world.h2.ipv4
    order = [first.begun, connect.begun, connect.ended, shake.begun, shake.ended, first.ended]
    assert all(later - earlier > -SLACK for earlier, later in itertools.pairwise(order)), order
    assert call.attributes["server.address"] == "inventory" and call.attributes["hostmesh.tries"] == 2
    assert (
        answer["next"]["got"]["traceparent"].split("-")[2]
        == below(spans, below(spans, call.id, "orders", CLIENT)[1].id, "inventory", SERVER)[0].id
    )
    return f"{len(spans)} spans in one trace"


def spans_of(spans: list[Span], unit: str, kind: int) -> Span:
    """The one span of a unit of this kind."""
    (only,) = (span for span in spans if (span.unit, span.kind) == (f"{unit}.service", kind))
    return only


def b3(t: Traced) -> str:
    """B3 in one field and in several, in and out, beside W3C; one trace in the collector, which speaks HTTP now"""
    t.configure(http('propagate = ["w3c", "b3multi"]'))
    _, short = _new_trace()
    got = t.get("http://orders:8081/products/b3", f"b3: {short}-00f067aa0ba902b7-1")
    at_orders, at_inventory = got["got"], got["next"]["got"]
    trace = "0" * 16 + short
    for at in (at_orders, at_inventory):
        _, w3c_trace, span, flags = at["traceparent"].split("-")
        assert (w3c_trace, flags) == (trace, "01")
        assert at["b3"].split("-")[:3] == [short, span, "1"]
        assert (at["x-b3-traceid"], at["x-b3-spanid"], at["x-b3-sampled"]) == (short, span, "1")
    spans = t.trace(trace, lambda spans: len([s for s in spans if s.kind != INTERNAL]) >= 9)
    roots = [span for span in spans if span.parent == "00f067aa0ba902b7"]
    assert [(span.unit, span.kind) for span in roots] == [("shop.service", CLIENT)], tree(spans)
    trace, span = _new_trace()
    got = t.get(
        "http://orders:8081/products/multi", f"X-B3-TraceId: {trace}", f"X-B3-SpanId: {span}", "X-B3-Sampled: 0"
    )
    assert got["next"]["got"]["x-b3-sampled"] == "0" and "b3" not in got["got"]
    assert got["next"]["got"]["traceparent"].startswith(f"00-{trace}-") and got["next"]["got"]["traceparent"].endswith(
        "-00"
    )
    t.configure(grpc())
    got = t.get("http://orders:8081/products/none", f"traceparent: 00-{trace}-{span}-01")
    assert set(got["got"]) == {"traceparent"}, "B3 where nobody asked for it"
    t.trace(trace, bool)
    assert all(
        one.attributes["url.path"] == "/products/none" for one in t.collector.spans(trace) if one.kind != INTERNAL
    )
    return "b3, x-b3-*: read and written; unsampled is not recorded"


def opaque(t: Traced) -> str:
    """An opaque connection is a span on both sides, the called one's below the caller's"""
    before = {span.id for span in t.collector.spans()}
    assert t.world.shop("redis-cli", "-h", "redis", "ping").must().stdout.strip() == "PONG"

    def both() -> list[Span] | None:
        new = [s for s in t.collector.spans() if s.id not in before and s.name == "TCP connection"]
        return new if len(new) == 2 else None

    spans = wait_until(both, "the spans of a connection to redis", 5.0, 0.05)
    caller, called = spans_of(spans, "shop", CLIENT), spans_of(spans, "redis-server", SERVER)
    assert (called.trace, called.parent) == (caller.trace, caller.id)
    assert caller.attributes["hostmesh.received_bytes"] == len("+PONG\r\n")
    return f"{caller.service} -> {called.service}: {(caller.ended - caller.begun) / 1e6:.1f} ms"


def failures_only(t: Traced) -> str:
    """With `trace = { share = 0, errors = true }` what fails is recorded, with its tries, and nothing else"""
    text = t.world.policy("shop.service") + "[observe]\ntrace = { share = 0, errors = true }\n"
    with t.world.changed_policy(t.world.h1, "shop.service", text):
        wait_until(lambda: _share(t) == (0, True), "the proxy has the policy")
        (good, span), (bad, _) = _new_trace(), _new_trace()
        t.get("http://orders:8081/products/good", f"traceparent: 00-{good}-{span}-00")
        t.world.shop("curl", "-sS", "-H", f"traceparent: 00-{bad}-{span}-00", "http://web/nothing-here").must()
        spans = t.trace(bad, lambda spans: len(spans) >= 2)
    (call,) = below(spans, span, "shop", CLIENT)
    (tried,) = below(spans, call.id, "shop", CLIENT)
    assert call.failed and tried.failed and call.attributes["error.type"] == "404"
    assert not t.collector.spans(good)
    return "the 404: 2 spans of its caller; the 200: none"


def _share(t: Traced) -> tuple[float, bool]:
    unit = in_force.unit(t.world.h1, "shop.service")
    assert unit
    return unit["trace"], unit["trace_errors"]


def stopped_collector(t: Traced) -> str:
    """The collector is stopped under load: no request fails, memory stays, drops are counted, it is told once"""
    return _dead(t, contextlib.nullcontext, "Connection refused")


def silent_collector(t: Traced) -> str:
    """The same with one that takes connections and answers nothing"""
    return _dead(t, lambda: _silent(t.world.outsider), "no answer within")


@contextlib.contextmanager
def _silent(host: Host) -> Iterator[None]:
    with host.unit(["/usr/bin/python3", "-c", SILENT]):
        host.wait_port(GRPC)
        yield


def _dead(t: Traced, instead: Callable[[], contextlib.AbstractContextManager[object]], why: str) -> str:
    """``instead``: what runs in the collector's place. Call while it does not run."""
    h1, cursor = t.world.h1, t.world.h1.journal_cursor()
    before, memory = _dropped(h1), metric(h1, "hostmesh_proxy_memory_bytes")
    with instead():
        said = t.world.shop("wrk", "-t1", "-c16", "-d2s", "http://web/", timeout=20).must().stdout
        in_status(t.world, h1, NOT_REACHED, why)
        grown = metric(h1, "hostmesh_proxy_memory_bytes") - memory
    requests = all_answered(said)
    assert requests > 500, said
    dropped = _dropped(h1) - before
    assert dropped > requests, f"{dropped} of two spans and more for each of {requests}"
    assert grown < 16 << 20, grown
    with t.collector.running():
        not_in_status(t.world, h1, NOT_REACHED, timeout=25.0)
        trace, span = _new_trace()
        t.get("http://orders:8081/products/back", f"traceparent: 00-{trace}-{span}-01")
        t.trace(trace, lambda spans: len([s for s in spans if s.kind != INTERNAL]) >= 9)
    lines = [e["MESSAGE"] for e in h1.journal(unit="hostmesh-proxy.service", after=cursor)]
    told = [line for line in lines if NOT_REACHED in line]
    assert why in told[0] and len(told) <= 2, told  # the second: nobody is there for a moment
    assert [line for line in lines if line.startswith("traces: well again")], lines
    return f"{requests} requests, none failed; {dropped:.0f} spans dropped, {grown / 1e6:.1f} MB; told: {told[0]}"


def _dropped(host: Host) -> float:
    return total(host, "hostmesh_traces_dropped_total", reason="queue-full")
