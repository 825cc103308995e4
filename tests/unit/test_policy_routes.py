"""``[[traffic.route]]``: what is read of good ones, what is said about bad ones, and that both laws are one."""

import msgspec
import pytest

from hostmesh.controller.offers import offer
from hostmesh.errors import PolicyError
from hostmesh.names import BadName
from hostmesh.plan.snapshot import traffic_of
from hostmesh.policy.model import Policy
from hostmesh.policy.validate import load
from hostmesh.wire.controller import Workload
from hostmesh.wire.snapshot import (
    Inject,
    Mirror,
    Redirect,
    Respond,
    Retries,
    Rewrite,
    Route,
    RouteMatch,
    Share,
    Traffic,
)

FILE = "inventory.service.toml"
HEAD = '[service.ports]\n8080 = "http"\n[traffic]\ntimeout = "5s"\n'
GOOD = """\
[[traffic.route]]
name  = "canary"
match = { path = "/products/{id}", methods = ["GET"], headers = { X-Canary = "1" }, query = { v = "*" } }
to    = { inventory-v2 = 10, inventory = 90 }
sticky = "cookie:session"
mirror = { to = "inventory-v3", percent = 0.5 }
rewrite = { path = "/v2/{id}", host = "inventory-v2" }
fault  = { delay = "2s", delay_percent = 10, abort = 503 }
request_headers = { set = { X-A = "1" }, add = { x-b = "2" }, remove = ["X-C"] }
timeout = "2s"
retries = { attempts = 3, per_try_timeout = "1s" }
[[traffic.route]]
match = { path = "/old/*" }
redirect = { to = "https://shop.example.org/new/*", status = 308 }
[[traffic.route]]
respond = { status = 503, body = "closed", headers = { retry-after = "60" } }
"""


def one(text: str) -> Policy:
    (policy,) = load({FILE: HEAD + text})
    return policy


def findings(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load({FILE: HEAD + text})
    return [str(found) for found in caught.value.diagnostics]


def published(*routes: Route) -> None:
    traffic = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="f:1", routes=list(routes))
    offer(Workload("inventory.service", "inventory", [(8080, "http")], traffic, ready=True))


def test_everything_that_can_be_said() -> None:
    policy = one(GOOD)
    canary, moved, closed = policy.traffic.routes
    assert (canary.name, canary.rule, canary.timeout_ms) == ("canary", f"{FILE}:5", 2000)
    assert canary.match == RouteMatch("/products/{id}", ["GET"], [("x-canary", "1")], [("v", "*")])
    assert (canary.to, canary.sticky) == ([Share("inventory", 90), Share("inventory-v2", 10)], "cookie:session")
    assert canary.mirror == Mirror("inventory-v3", 0.5, 64)
    assert canary.rewrite == Rewrite("/v2/{id}", "inventory-v2")
    assert canary.fault == Inject(2000, 10, 503, 100)
    assert canary.request_headers and canary.request_headers.set == [("x-a", "1")]
    assert canary.request_headers.remove == ["x-c"]
    assert canary.retries == Retries(3, 1000, ["connect-failure"], 0.2, non_idempotent=False)
    assert (moved.name, moved.redirect) == (f"{FILE}:16", Redirect("https://shop.example.org/new/*", 308))
    assert closed.respond == Respond(503, "closed", [("retry-after", "60")])
    assert traffic_of(policy).routes == list(policy.traffic.routes)
    published(*policy.traffic.routes)


@pytest.mark.parametrize(
    ("route", "line", "said"),
    [
        ('match = { path = "/a/../b" }', 6, "a dot segment"),
        ('match = { path = "/a/{id}x" }', 6, "a variable is a whole segment"),
        ('match = { paths = "/a" }', 6, "did you mean 'path'?"),
        ('match = { methods = ["get"] }', 6, "did you mean 'GET'?"),
        ('match = { path = "/{a}" }\nrewrite = { path = "/{b}" }', 7, "the match has no variable 'b'"),
        ('match = { path = "/a*" }\nrewrite = { path = "/b/*" }', 7, "behind a slash"),
        ('redirect = { to = "ftp://h/" }', 6, "no place to go"),
        ('redirect = { to = "https://u:p@h/" }', 6, "no place to go"),
        ('redirect = { to = "/x", status = 300 }', 6, "300 is no redirection"),
        ('redirect = { status = 302 }', 6, "lacks 'to'"),
        ('redirect = { to = "/x" }\nto = "other"', 7, "'to' beside 'redirect' would never be used"),
        ('redirect = { to = "/x" }\nrespond = {}', 7, "'respond' beside 'redirect' would never be used"),
        ('respond = { status = 204, body = "x" }', 6, "has no body"),
        ('respond = { headers = { content-length = "9" } }', 6, "no policy may touch 'content-length'"),
        ('request_headers = { set = { host = "x" } }', 6, "rewrite = { host = … }"),
        ('request_headers = { remove = ["X_Hostmesh_Peer"] }', 6, "no policy may touch 'x_hostmesh_peer'"),
        ('response_headers = { add = { x-a = "1\\r\\nx-b: 2" } }', 6, "is not a header's value"),
        ("to = { a = 0, b = 0 }", 6, "none would ever be chosen"),
        ("to = {}", 6, "leads nowhere"),
        ('to = { A_b = 1 }', 6, "is not a service name"),
        ('to = "a"\nsticky = "source"', 7, "nothing to choose between"),
        ('to = { a = 1, b = 2 }\nsticky = "mood"', 7, "nothing to hash by"),
        ('mirror = { percent = 5 }', 6, "lacks 'to'"),
        ('mirror = { to = "a", percent = 101 }', 6, "not in 0..100"),
        ('fault = { abort = 200 }', 6, "no status of an error"),
        ('fault = { delay = "2h" }', 6, "at most an hour"),
        ('fault = { delay_percent = 5 }', 6, "delay_percent without 'delay'"),
        ('timeout = "1s"\nretries = { per_try_timeout = "2s" }', 7, "per_try_timeout is longer than timeout"),
        ('retries = { per_try_timeout = "6s" }', 6, "per_try_timeout is longer than timeout"),
        ('name = "a b"', 6, "is not a route's name"),
        ('name = "a"\nmatch = { path = "/a" }\n[[traffic.route]]\nname = "a"', 8, "is named 'a' already"),
        ('[[traffic.route]]\nmatch = { path = "/a" }', 6, "never reached"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_where_it_stands(route: str, line: int, said: str) -> None:
    told = findings("[[traffic.route]]\n" + route)
    assert any(text.startswith(f"{FILE}:{line}:") and said in text for text in told), told


def test_a_route_needs_a_port_that_can_be_read() -> None:
    with pytest.raises(PolicyError, match="a route needs a port that speaks http, http2, grpc or auto"):
        load({FILE: '[service.ports]\n5432 = "tcp"\n[[traffic.route]]\nto = "other"'})


def test_a_route_is_taken_where_http2_is_spoken() -> None:
    (policy,) = load({FILE: '[service.ports]\n50051 = "grpc"\n[[traffic.route]]\nto = "other"'})
    assert policy.traffic.routes[0].to == [Share("other", 1)]


def test_two_files_of_one_service_may_say_it_on_other_lines() -> None:
    route = '[[traffic.route]]\nmatch = { path = "/a" }\nto = "other"\n'
    both = {
        "a.service.toml": f'[service]\nname = "s"\n[service.ports]\n1 = "http"\n{route}',
        "b.service.toml": f'# first\n[service]\nname = "s"\n[service.ports]\n2 = "http"\n{route}',
    }
    assert len(load(both)) == 2
    both["b.service.toml"] = both["b.service.toml"].replace("other", "another")
    with pytest.raises(PolicyError, match=r"has another \[traffic\] already"):
        load(both)


SOUND = Route(name="r", rule="f:1", match=RouteMatch(path="/a/{id}"), to=[Share("b", 1)])


@pytest.mark.parametrize(
    "change",
    [
        {"match": RouteMatch(path="/a/../b")},
        {"to": [Share("B!", 1)]},
        {"to": [Share(f"s{number}", 1) for number in range(17)]},
        {"name": "x\n"},
        {"rewrite": Rewrite(path="/{other}")},
        {"rewrite": Rewrite(host="a\r\nb")},
        {"to": [], "respond": Respond(200, "x" * 4097)},
        {"to": [], "redirect": Redirect("javascript:alert(1)", 302)},
        {"mirror": Mirror("b", 5, 10**9)},
        {"fault": Inject(delay_ms=10**9, delay_percent=100)},
        {"timeout_ms": -1},
        {"retries": Retries(11, 0, [], 0.2, non_idempotent=False)},
    ],
)
def test_a_stolen_host_can_say_no_more_than_a_file(change: dict[str, object]) -> None:
    published(SOUND)
    with pytest.raises(BadName):
        published(msgspec.structs.replace(SOUND, **change))


def test_a_stolen_host_cannot_say_it_more_often() -> None:
    with pytest.raises(BadName, match="129 routes"):
        published(*[SOUND] * 129)
