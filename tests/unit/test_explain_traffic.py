"""How `hostmesh explain` tells the way of a call, the choice of an endpoint and the limits, each with its place."""

from pathlib import Path

import msgspec
import pytest

from hostmesh.cli.explain_traffic import choice, limits, place, plain_way, tokens, way
from hostmesh.plan.snapshot import traffic_of
from hostmesh.policy.authorize import Request
from hostmesh.policy.route_choice import Asked
from hostmesh.policy.validate import load
from hostmesh.wire.snapshot import Endpoint, Service, Snapshot, TokenIssuer, TokenKey

SAMPLE = Path(__file__).parents[1] / "vectors" / "snapshot" / "h1.json"
SNAPSHOT = msgspec.json.decode(SAMPLE.read_bytes(), type=Snapshot)
POLICY = """[service]
name = "web"
[service.ports]
80 = "http"
[traffic]
timeout = "2s"
connect_timeout = "1s"
idle_timeout = "5m"
retries = { attempts = 2, on = ["5xx"], budget = 0.5, backoff = "10ms" }
balance = { by = "consistent-hash", on = "cookie:session", bound = 1.5 }
prefer = "near"
slow_start = "30s"
panic = 0.25

[traffic.breaker]
max_connections = 100
max_requests = 7
consecutive_errors = 5
"""
TRAFFIC = traffic_of(load({"web.service.toml": POLICY})[0])


def endpoint(host: str, zone: str = "") -> Endpoint:
    return Endpoint("web.service", host, "spiffe://m/unit/web", "web.unit", ["198.18.0.9"], 15008, zone)


PASSED_OVER = "one to which there is no connection is passed over: each other one is asked once (by default)"
SERVICE = Service("web", [], [], TRAFFIC, [endpoint("h1"), endpoint("h2", "a"), endpoint("h3", "b"), endpoint("h4")])


def asked(*headers: tuple[str, str]) -> Asked:
    return Asked(Request("GET", "/", headers))


def test_each_limit_has_the_line_that_says_so() -> None:
    assert list(limits(TRAFFIC, None)) == [
        "in 2 s at most, all tries together (web.service.toml:6)",
        "connected within 1 s (web.service.toml:7)",
        "ended when nothing moves for 300 s (web.service.toml:8)",
        "2 tries, 10 to 250 ms apart, after 5xx, at most 50% more requests (web.service.toml:9)",
        "what is not idempotent is tried again only where nothing of it reached the service",
        "of all callers of this host at most 100 connections, 7 requests at once, else 503, breaker-open "
        "(web.service.toml:15)",
        "an endpoint is left alone for 30 s after 5 errors in a row, at most 50% of them (web.service.toml:15)",
    ]


def test_a_routes_own_limits_stand_in_the_route() -> None:
    text = POLICY + '[[traffic.route]]\nmatch = { path = "/x" }\ntimeout = "1s"\nretries = { attempts = 3 }\n'
    traffic = traffic_of(load({"web.service.toml": text})[0])
    told = list(limits(traffic, traffic.routes[0]))
    assert told[0] == "in 1 s at most, all tries together (web.service.toml:19)"
    assert told[3].startswith("3 tries") and told[3].endswith("(web.service.toml:19)")


def test_the_choice_of_an_endpoint() -> None:
    among = "web.service on h1, web.service on h2, web.service on h3, web.service on h4"
    hashed, near, slow, panic = choice(SNAPSHOT, SERVICE, asked(("cookie", "session=7")))
    goes = "one of 4 by consistent-hash on cookie:session"
    bound = "none above 1.5 times the mean (web.service.toml:10)"
    assert hashed == f"{goes} = '7', {bound}: {among}"
    assert "this host 1, this zone 1, elsewhere 2 (web.service.toml:11)" in near
    assert slow == "one that joins has its full share after 30 s (web.service.toml:12)"
    assert panic == "with fewer than 25% of them healthy all count as healthy (web.service.toml:13)"
    lacks = next(choice(SNAPSHOT, SERVICE, asked()))
    assert lacks == f"{goes}, which it lacks: least-request, {bound}: {among}"
    assert next(choice(SNAPSHOT, SERVICE, None)) == f"{goes}, {bound}: {among}"


@pytest.mark.parametrize(
    ("endpoints", "says"),
    [
        ([], ["nobody serves it: 503, no-endpoint"]),
        ([endpoint("h2")], ["by web.service on h2"]),
        (
            [endpoint("h2"), endpoint("h3")],
            ["one of 2 by least-request (by default): web.service on h2, web.service on h3", PASSED_OVER],
        ),
    ],
)
def test_what_silence_means(endpoints: list[Endpoint], says: list[str]) -> None:
    silent = traffic_of(load({"web.service.toml": POLICY.partition("[traffic]")[0]})[0])
    service = msgspec.structs.replace(SERVICE, traffic=silent, endpoints=endpoints)
    assert list(choice(SNAPSHOT, service, None)) == says
    assert list(limits(silent, None)) == []


@pytest.mark.parametrize(("on", "is_said"), [("reset", True), ("connect-failure", False), ("gateway-error", False)])
def test_who_cannot_be_reached_is_passed_over_unless_retries_say_how_often(on: str, *, is_said: bool) -> None:
    traffic = traffic_of(load({"web.service.toml": POLICY.replace('on = ["5xx"]', f'on = ["{on}"]')})[0])
    told = list(choice(SNAPSHOT, msgspec.structs.replace(SERVICE, traffic=traffic), None))
    assert (PASSED_OVER in told) == is_said, told


def test_the_way_of_a_call() -> None:
    taken, here, there, *_ = way(SNAPSHOT, SERVICE).splitlines()
    assert taken == "taken on port 15001 of this host (outbound)"
    assert here.strip() == "to web.service on h1 within this host, no wire"
    assert there.strip() == "to web.service on h2 by mTLS on port 15008 (wire)"
    assert "nobody serves it" in way(SNAPSHOT, msgspec.structs.replace(SERVICE, endpoints=[]))
    unit = SNAPSHOT.units[0]
    assert plain_way(SNAPSHOT, unit) == f"taken on port 15006 of this host (plaintext), to {unit.unit} on this host"


def test_whose_tokens_are_believed() -> None:
    key = TokenKey("k", ["ES256"], "AA==")
    issuer = TokenIssuer("web.service.toml:9", "https://id", ["web"], [key], "header:authorization", True, 0, [])
    without = msgspec.structs.replace(issuer, keys=[], rule="web.service.toml:14")
    known, unknown = tokens([issuer, without]).splitlines()
    assert known == "https://id, for web, from header:authorization, 1 key known (web.service.toml:9)"
    assert "NO KEY KNOWN" in unknown and unknown.endswith("(web.service.toml:14)")


def test_a_host_of_before_says_no_lines() -> None:
    before = msgspec.structs.replace(TRAFFIC, lines={})
    assert place(before, "timeout") == "web.service.toml:9"
    assert place(msgspec.structs.replace(before, rule=""), "timeout") == "the service's policy"
