"""What /metrics says of calls through two real hosts: exact by who, whom, route and code; bounded; with traces."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.samples import Sample

from hostmesh.policy.hostfile import PLACE
from tests.lab.host import Host
from tests.lab.prometheus import Prometheus
from tests.lab.promql import metrics
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.shelf import Shelf, shelf
from tests.mesh.told import samples, total
from tests.mesh.world import World
from tests.unit.test_observability import asked

pytestmark = pytest.mark.lab

ROUTES = """
[[traffic.route]]
name  = "canary"
match = { path = "/*", headers = { x-canary = "1" } }
to    = "shelf-v2"

[[traffic.route]]
name    = "closed"
match   = { path = "/closed" }
respond = { status = 503 }

[[traffic.route]]
name  = "broken"
match = { path = "/broken" }
fault = { abort = 418 }
"""
SHOP = "spiffe://mesh.test/unit/shop"
PLAIN, CANARY, CLOSED, BROKEN, MOVED = 30, 20, 7, 5, 3


@pytest.fixture(scope="module")
def versions(mesh: World) -> Iterator[Shelf]:
    with shelf(mesh) as made, made.routes(ROUTES):
        yield made


def grown(host: Host, name: str, before: Counter[tuple[str, ...]], *labels: str) -> dict[tuple[str, ...], float]:
    """By how much the metric has grown, by these labels; only what has."""
    counts = by_labels(host, name, *labels)
    counts.subtract(before)
    return {key: count for key, count in counts.items() if count}


def by_labels(host: Host, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for sample in samples(host, name):
        counts[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    return counts


def test_counts_are_exact_by_who_called_whom_by_which_route_and_how_it_ended(versions: Shelf) -> None:
    h1, h2 = versions.world.h1, versions.world.h2
    flow = ("direction", "source", "destination", "route", "code")
    flags = ("unit", "service", "flag")
    places = [(h1, name, labels) for name, labels in (("requests", flow), ("duration", flow), ("flags", flags))]
    places.append((h2, "requests", flow))
    names = {"requests": "hostmesh_requests_total", "duration": "hostmesh_duration_seconds_count",
             "flags": "hostmesh_flags_total"}  # fmt: skip
    before = [by_labels(host, names[name], *labels) for host, name, labels in places]
    asks: list[tuple[str, str, dict[str, str]]] = [("GET", "/", {})] * PLAIN + [
        ("GET", "/", {"x-canary": "1"})
    ] * CANARY
    asks += [("GET", "/closed", {})] * CLOSED + [("GET", "/broken", {})] * BROKEN + [("GET", "/a%2fb", {})] * MOVED
    statuses = Counter(answer.status for answer in versions.ask(asks, 4))
    assert statuses == {200: PLAIN + CANARY, 503: CLOSED, 418: BROKEN, 400: MOVED}
    out = ("outbound", "shop.service")
    requests = {
        (*out, "shelf", "", "2xx"): PLAIN,
        (*out, "shelf-v2", "canary", "2xx"): CANARY,
        (*out, "shelf", "closed", "5xx"): CLOSED,
        (*out, "shelf", "broken", "4xx"): BROKEN,
        (*out, "shelf", "closed", "denied"): MOVED,
    }
    came = {
        ("inbound", SHOP, "shelf.service", "", "2xx"): PLAIN,
        ("inbound", SHOP, "shelf-v2.service", "", "2xx"): CANARY,
    }
    told = {
        ("shop.service", "shelf", "responded"): CLOSED,
        ("shop.service", "shelf", "fault"): BROKEN,
        ("shop.service", "shelf", "bad-path"): MOVED,
    }
    for (host, name, labels), was, wanted in zip(places, before, (requests, requests, told, came), strict=True):
        wait_until(
            lambda: grown(host, names[name], was, *labels) == wanted,  # noqa: B023 (asked at once)
            f"{host.name}: {name} grew by {wanted}",
            5.0,
            0.2,
        )


def exemplars(host: Host, trace: str) -> list[Sample]:
    """Buckets that show this trace, as Prometheus gets them."""
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    text = host.exec(["curl", "-sS", "-H", accept, "http://127.0.0.1:15020/metrics"]).must().stdout
    found = [sample for family in openmetrics(text) for sample in family.samples if sample.exemplar]
    return [sample for sample in found if sample.exemplar and sample.exemplar.labels == {"trace_id": trace}]


def test_the_duration_of_a_request_leads_to_its_trace_in_a_real_prometheus(versions: Shelf) -> None:
    h1, h2 = versions.world.h1, versions.world.h2
    trace = secrets.token_hex(16)
    header = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01", "x-canary": "1"}
    prometheus = Prometheus(h1)
    with prometheus.running():
        [answer] = versions.ask([("GET", "/", header)])
        assert answer.status == 200
        wanted = [(h1, "outbound", "shelf-v2", "canary"), (h2, "inbound", "shelf-v2.service", "")]
        for host, *labels in wanted:
            [seen] = wait_until(lambda host=host: exemplars(host, trace), f"{host.name} shows {trace}", 5.0, 0.2)  # type: ignore[misc]
            assert [seen.labels[name] for name in ("direction", "destination", "route")] == labels
            assert seen.exemplar and 0 < seen.exemplar.value <= float(seen.labels["le"])

        def kept() -> bool:
            asked_for = {"query": "hostmesh_duration_seconds_bucket", "start": "0", "end": "9999999999"}
            series = prometheus.ask("query_exemplars", **asked_for)
            return any(one["labels"]["trace_id"] == trace for each in series for one in each["exemplars"])

        wait_until(kept, f"Prometheus has an exemplar of {trace}", 10.0, 0.2)
        [up] = prometheus.ask("query", query='up{job="hostmesh"}')["result"]
        assert up["value"][1] == "1"


@pytest.fixture
def limits(mesh: World) -> Iterator[Callable[[int, str], None]]:
    """Gives h1 another ``[metrics]``; its settings come back."""
    h1 = mesh.h1
    before = h1.read(PLACE)

    def known(wanted: dict[str, int]) -> None:
        def is_in_force() -> bool:
            held: dict[str, int] = in_force.snapshot(h1)["metrics"]
            return held == wanted

        wait_until(is_in_force, f"h1's proxy goes by {wanted}", 15.0, 0.1)

    def put(max_series: int, expire: str) -> None:
        h1.write(PLACE, f'{before}\n[metrics]\nmax_series = {max_series}\nexpire = "{expire}"\n')
        known({"max_series": max_series, "expire_ms": {"1h": 3_600_000, "1s": 1_000}[expire]})

    yield put
    h1.write(PLACE, before)
    known({"max_series": 4000, "expire_ms": 3_600_000})


def test_what_has_no_room_counts_as_other_and_who_is_quiet_makes_room(
    versions: Shelf, limits: Callable[[int, str], None]
) -> None:
    h1 = versions.world.h1
    name, dropped, kept = "hostmesh_requests_total", "hostmesh_series_dropped_total", "hostmesh_proxy_series"
    third = {"source": "shop.service", "destination": "shelf", "route": "third"}
    with versions.routes(ROUTES + '\n[[traffic.route]]\nname = "third"\nmatch = { path = "/third" }\n'):
        limits(int(total(h1, kept)), "1h")
        others, before = total(h1, name, destination="other"), total(h1, dropped)
        ask = [("GET", "/third", {})]
        assert {answer.status for answer in versions.ask(ask * 10)} == {200}
        wait_until(lambda: total(h1, name, source="other") == others + 10, "ten more as other", 5.0, 0.2)
        assert total(h1, dropped) > before
        assert not samples(h1, name, **third)
        assert total(h1, kept) <= total(h1, "hostmesh_proxy_max_series")

        limits(100, "1s")
        wait_until(lambda: total(h1, kept) <= 10, "the quiet ones end", 15.0, 0.5)
        versions.ask(ask * 4)
        wait_until(lambda: total(h1, name, **third) == 4, "what comes back begins at zero", 5.0, 0.2)


def test_rules_and_dashboard_ask_for_what_agents_say(mesh: World) -> None:
    there = set()
    for host in (mesh.h1, mesh.h2):
        text = host.exec(["curl", "-sS", "http://127.0.0.1:15020/metrics"]).must().stdout
        there |= {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    there |= {name + part for name in there for part in ("_bucket", "_count")}
    for place, expression in asked():
        assert metrics(expression) <= there, place
