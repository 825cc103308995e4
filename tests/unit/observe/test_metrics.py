"""The text that Prometheus gets, over HTTP, and the bound on its labels."""

import resource
import socket
import threading
import time
import urllib.request

import pytest
from msgspec.structs import replace
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from hostmesh.observe.metrics import MAX_SCRAPES, Observed, flows, serve
from hostmesh.wire.proxy_control import Circuit, Exemplar, Stats, TrafficCount
from tests.lab.waiting import wait_until


def row(**values: object) -> TrafficCount:
    base: dict[str, object] = {
        "unit": "orders.service", "direction": "outbound", "peer": "spiffe://m/unit/inventory", "service": "inventory",
        "port": 80, "protocol": "http", "code_class": "2xx", "count": 10, "retries": 2, "bytes_in": 100,
        "bytes_out": 1000, "duration_us_sum": 5000, "buckets": [6, 3, 1],
    }  # fmt: skip
    return TrafficCount(**{**base, **values})  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(observed: Observed) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    port = free_port()
    stop = serve(lambda: observed, "127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        stop()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_of_proxy_kernel_and_agent() -> None:
    stats = Stats(
        id=1,
        bounds_us=[1000, 10000],
        traffic=[row(route="canary")],
        flags={"orders.service": {"inventory": {"timeout": 14}}},
        denied={"f:3": 4},
        gauges={"connections": 5, "tls_handshakes": 6},
        tls_failures={"server": {"revoked": 8}, "client": {"expired": 9}},
        traces_dropped={"queue-full": 11},
        circuits={"web": Circuit({"pending": 256}, {"pending": 3}, {"pending": 1}, {"pending": 11}, 2, 12, 13)},
    )
    found = scrape(
        Observed(
            "1.2", stats, kernel={("web.service", "f:no-plaintext"): 7}, svids={"web.service": 123}, agent={"units": 2}
        )
    )
    flow = (
        ("code", "2xx"), ("destination", "inventory"), ("direction", "outbound"), ("port", "80"), ("protocol", "http"),
        ("route", "canary"), ("source", "orders.service"),
    )  # fmt: skip
    assert found["hostmesh_requests_total", flow] == 10
    assert found["hostmesh_retries_total", flow] == 2
    flag = (("flag", "timeout"), ("service", "inventory"), ("unit", "orders.service"))
    assert found["hostmesh_flags_total", flag] == 14
    assert found["hostmesh_denied_total", (("rule", "f:3"),)] == 4
    assert found["hostmesh_proxy_connections", ()] == 5
    assert found["hostmesh_proxy_tls_handshakes_total", ()] == 6
    assert found["hostmesh_proxy_tls_failures_total", (("reason", "revoked"), ("side", "server"))] == 8
    assert found["hostmesh_proxy_tls_failures_total", (("reason", "expired"), ("side", "client"))] == 9
    assert found["hostmesh_traces_dropped_total", (("reason", "queue-full"),)] == 11
    assert found["hostmesh_kernel_refused_packets_total", (("rule", "f:no-plaintext"), ("unit", "web.service"))] == 7
    web = (("resource", "pending"), ("service", "web"))
    limits = [found[f"hostmesh_breaker_{name}", web] for name in ("limit", "in_use", "open", "refused_total")]
    assert limits == [256, 3, 1, 11]
    names = ("hostmesh_endpoints_ejected", "hostmesh_ejections_total", "hostmesh_retry_budget_spent_total")
    assert [found[name, (("service", "web"),)] for name in names] == [2, 12, 13]
    assert found["hostmesh_svid_expiry_seconds", (("unit", "web.service"),)] == 123
    assert found["hostmesh_agent_units", ()] == 2
    assert found["hostmesh_info", (("version", "1.2"),)] == 1


def test_histogram_is_cumulative_and_in_seconds() -> None:
    found = scrape(Observed("1", Stats(id=1, bounds_us=[1000, 10000], traffic=[row()], denied={}, gauges={})))
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "hostmesh_duration_seconds_bucket"
    }
    assert buckets == {"0.001": 6, "0.01": 9, "+Inf": 10}
    (total,) = (value for (name, _), value in found.items() if name == "hostmesh_duration_seconds_sum")
    assert total == 0.005


def test_no_proxy_still_answers() -> None:
    assert ("hostmesh_info", (("version", "1"),)) in scrape(Observed("1", None))


def test_direction_says_who_is_source() -> None:
    inbound = row(unit="inventory.service", direction="inbound", peer="spiffe://m/unit/orders", service="inventory")
    (flow,) = flows([inbound])
    assert flow[:3] == ("inbound", "spiffe://m/unit/orders", "inventory.service")


def test_exemplars_for_who_asks_for_openmetrics() -> None:
    older, newer = Exemplar(1, "0a" * 16, 4000, 1_000), Exemplar(1, "0b" * 16, 5000, 2_500)
    late = replace(older, bucket=2)
    rows = [row(exemplars=[newer]), row(peer="spiffe://m/unit/other", exemplars=[older, late])]
    stats = Stats(id=1, bounds_us=[1000, 10000], traffic=rows, denied={}, gauges={}, series_dropped=3)
    port = free_port()
    stop = serve(lambda: Observed("1", stats), "127.0.0.1", port)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=accept)
    with urllib.request.urlopen(asked, timeout=5) as answer:
        families = list(openmetrics.text_string_to_metric_families(answer.read().decode()))
    stop()
    samples = [sample for family in families for sample in family.samples]
    found = {
        sample.labels["le"]: (
            sample.exemplar.labels["trace_id"],
            sample.exemplar.value,
            float(sample.exemplar.timestamp),
        )
        for sample in samples
        if sample.exemplar
    }
    assert found == {"0.01": (newer.trace_id, 0.005, 2.5), "+Inf": (older.trace_id, 0.004, 1.0)}
    assert [sample.value for sample in samples if sample.name == "hostmesh_series_dropped_total"] == [3]


def test_those_who_hold_connections_open_take_no_more_than_their_places() -> None:
    port = free_port()
    stop = serve(lambda: Observed("1", None), "127.0.0.1", port)
    before = threading.active_count()
    held = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(MAX_SCRAPES + 4)]
    wait_until(lambda: threading.active_count() == before + MAX_SCRAPES, "every place is taken")
    for connection in held:
        connection.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.status == 200
    stop()


def test_without_descriptors_a_scrape_waits_and_nothing_spins() -> None:
    port = free_port()
    stop = serve(lambda: Observed("1", None), "127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as waiting:
        resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
        try:
            waiting.connect(("127.0.0.1", port))
            used = time.process_time()
            waiting.settimeout(0.6)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            assert time.process_time() - used < 0.1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        waiting.settimeout(5)
        waiting.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert waiting.recv(100).startswith(b"HTTP/1.0 200")
    stop()
