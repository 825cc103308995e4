"""What a host calls services: its own endpoints by what runs here, all others by the controller's last word."""

import msgspec

from hostmesh.agent.services import NOTHING, after, effective, still_ready, workloads
from hostmesh.names import UnitName
from hostmesh.plan.facts import HostFacts, UnitFacts
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load
from hostmesh.wire.controller import WatchEvent
from hostmesh.wire.snapshot import Endpoint, Service, ServicePort, Traffic

SETTINGS = Settings(trust_domain="mesh.test", host="h1")
WEB = UnitName("web.service")
POLICIES = load({"/p/web.service.toml": '[service]\n[service.ports]\n8080 = "http"\n', "/p/job.service.toml": ""})
QUIET = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="")


def facts(*, active: bool = True) -> HostFacts:
    return HostFacts("h1", ("198.18.0.1",), {WEB: UnitFacts(WEB, active)}, {WEB: 1})


def endpoint(host: str, unit: str = "web.service") -> Endpoint:
    return Endpoint(unit, host, f"spiffe://mesh.test/unit/{unit[:-8]}", "web.unit.mesh.test", ["198.18.0.9"], 15008)


def service(name: str = "web", *endpoints: Endpoint) -> Service:
    return Service(name, ["240.240.0.5"], [ServicePort(80, 8080, "http")], QUIET, list(endpoints))


def event(revision: int, *services: Service, removed: tuple[str, ...] = (), full: bool = False) -> WatchEvent:
    return WatchEvent(revision, full, list(services), list(removed), ["root"], ["240.240.0.0/16"])


def test_deltas_add_change_and_remove() -> None:
    known = after(NOTHING, event(1, service("web"), service("db"), full=True))
    known = after(known, event(2, service("web", endpoint("h2")), removed=("db",)))
    assert [s.name for s in known.services] == ["web"]
    assert known.services[0].endpoints == [endpoint("h2")]
    assert (known.revision, known.full, known.removed) == (2, True, [])


def test_a_full_event_forgets_what_was() -> None:
    known = after(after(NOTHING, event(1, service("web"))), event(7, service("db"), full=True))
    assert [s.name for s in known.services] == ["db"]


def test_conflicts_live_as_long_as_their_service_is_not_told_anew() -> None:
    first = msgspec.structs.replace(event(1, service("web")), conflicts={"web": ["h1 f:3", "h2 f:4"]})
    known = after(NOTHING, first)
    assert after(known, event(2, service("db"))).conflicts == {"web": ["h1 f:3", "h2 f:4"]}
    assert after(known, event(2, service("web"))).conflicts == {}


def test_the_kept_word_is_read_back_the_same() -> None:
    known = after(NOTHING, event(3, service("web", endpoint("h2"))))
    assert msgspec.json.decode(msgspec.json.encode(known), type=WatchEvent) == known


def test_what_serves_is_published_and_whether_it_is_ready() -> None:
    unknown = HostFacts("h1", ("198.18.0.1",), {}, {WEB: 1})
    for seen, ready in ((facts(), True), (facts(active=False), False), (unknown, False)):
        said = [(w.unit, w.service, w.ports, w.ready) for w in workloads(POLICIES, seen)]
        assert said == [("web.service", "web", [(8080, "http")], ready)]


def test_own_endpoint_comes_and_goes_without_the_controller() -> None:
    catalog = after(NOTHING, event(1, service("web", endpoint("h1"), endpoint("h2"))))
    up = effective(SETTINGS, catalog, workloads(POLICIES, facts()), {}, facts())
    assert [e.host for e in up[0].endpoints] == ["h1", "h2"]
    down = effective(SETTINGS, catalog, workloads(POLICIES, facts(active=False)), {}, facts())
    assert [e.host for e in down[0].endpoints] == ["h2"]
    alone = after(NOTHING, event(1, service("web", endpoint("h1"))))
    (nobody,) = effective(SETTINGS, alone, workloads(POLICIES, facts(active=False)), {}, facts())
    assert nobody == service("web"), "the name, its VIP and [traffic] stay while nobody serves it"


def test_a_service_that_only_this_host_knows_has_no_vip() -> None:
    (alone,) = effective(SETTINGS, NOTHING, workloads(POLICIES, facts()), {}, facts())
    assert (alone.name, alone.vips, [p.port for p in alone.ports]) == ("web", [], [8080])
    assert alone.endpoints[0].spiffe_id == "spiffe://mesh.test/unit/web"
    assert alone.endpoints[0].addresses == ["198.18.0.1"]
    (stopped,) = effective(SETTINGS, NOTHING, workloads(POLICIES, facts(active=False)), {}, facts())
    assert stopped == msgspec.structs.replace(alone, endpoints=[])


def test_what_the_controller_refused_serves_nobody() -> None:
    refused = {"web.service": "not granted"}
    assert effective(SETTINGS, NOTHING, workloads(POLICIES, facts()), refused, facts()) == []


def test_what_was_said_can_lose_readiness_and_gain_none() -> None:
    ready, stopped = workloads(POLICIES, facts()), workloads(POLICIES, facts(active=False))
    assert [load.ready for load in ready] == [True]
    assert still_ready(ready, ready) == ready
    assert still_ready(ready, stopped) == stopped
    assert still_ready(ready, []) == stopped
    assert still_ready(stopped, ready) == stopped
