"""gRPC through two real hosts: grpcio's own client and server, in every way that they can call."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.extra import OURS, Extra, Served, served
from tests.mesh.told import total
from tests.mesh.world import POLICIES, TRUST_DOMAIN, World

pytestmark = pytest.mark.lab

DENY = '[[inbound.deny]]\nfrom = ["*"]\npaths = ["/lab.Echo/Secret"]\n'
RETRIES = '[traffic]\nretries = { attempts = 3, on = ["unavailable"], non_idempotent = true }\n'
LIMIT = '[[inbound.limit]]\nmethods = ["POST"]\npaths = ["/lab.Echo/Unary"]\nrate = "3/h"\nburst = 3\n'
ECHO = Extra("echo", 8051, "grpc", "grpc_server.py", python=OURS, policy=DENY)


@pytest.fixture(scope="module")
def echo(mesh: World) -> Iterator[Served]:
    with served(mesh, ECHO) as made:
        yield made


def call(echo: Served, way: str) -> Any:  # noqa: ANN401 (JSON)
    return json.loads(echo.client("grpc_client.py", f"{ECHO.name}:{ECHO.port}", way).must().stdout)


def test_unary_calls(echo: Served) -> None:
    said = call(echo, "unary")
    peer = f"spiffe://{TRUST_DOMAIN}/unit/shop"
    assert said == {"body": "hello", "peer": peer, "length": "5", "large": True}


def test_streams_in_both_directions(echo: Served) -> None:
    assert call(echo, "streams") == {"down": True, "up": "500 500000", "both": True, "end": "OK"}


def test_deadlines_reach_the_server(echo: Served) -> None:
    said = call(echo, "deadline")
    code, _, seconds = said["failed"]
    assert code == "DEADLINE_EXCEEDED" and 0.4 <= seconds < 2
    assert said["cancelled"] == ["late", "unwanted"]


def test_a_thousand_streams_at_once(echo: Served) -> None:
    assert call(echo, "many") == {"first": True, "second": True, "codes": ["OK"]}


def test_refusals_are_statuses(echo: Served) -> None:
    w = echo.world
    rule = f"{POLICIES}/echo.service.toml:7"
    counted = total(w.h2, "hostmesh_denied_total", rule=rule)
    failed = total(w.h1, "hostmesh_requests_total", source="shop.service", destination="echo", code="5xx")
    cursor = w.h2.journal_cursor()
    said = call(echo, "refused")
    assert said["denied"][0] == "PERMISSION_DENIED" and "policy" in said["denied"][1]
    assert said["failed"] == {
        "INVALID_ARGUMENT": ["INVALID_ARGUMENT", "as asked"],
        "UNAVAILABLE": ["UNAVAILABLE", "as asked"],
        "DATA_LOSS": ["DATA_LOSS", "as asked"],
    }
    line = w.denials(w.h2, after=cursor, HOSTMESH_UNIT="echo.service", HOSTMESH_VERDICT="deny")[0]
    assert (line["HOSTMESH_RULE"], line["HOSTMESH_PATH"]) == (rule, "/lab.Echo/Secret")
    wait_until(lambda: total(w.h2, "hostmesh_denied_total", rule=rule) == counted + 1, "it is counted", 5.0, 0.1)

    def grown() -> bool:
        now = total(w.h1, "hostmesh_requests_total", source="shop.service", destination="echo", code="5xx")
        return now == failed + 2

    wait_until(grown, "UNAVAILABLE and DATA_LOSS count as errors of the server", 5.0, 0.1)


def test_a_limit_is_a_status_too(echo: Served) -> None:
    w = echo.world
    with w.changed_policy(w.h2, ECHO.unit, ECHO.written(LIMIT)):

        def limited() -> bool:
            known = in_force.unit(w.h2, ECHO.unit)
            return known is not None and bool(known["limits"])

        wait_until(limited, "the limit is in force", 10.0, 0.05)
        *codes, first, last = call(echo, "limited")
    assert codes == ["OK", "OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]
    told = {**first, **last}
    assert told["x-hostmesh-error"] == "limited" and 1190 <= int(told["retry-after"]) <= 1200, told


def test_what_is_unavailable_is_tried_again(echo: Served) -> None:
    w = echo.world
    with w.changed_policy(w.h2, ECHO.unit, ECHO.written(RETRIES)):
        wait_until(lambda: w.services(w.h1)["echo"]["traffic"]["retries"], "h1 knows the retries", 10.0, 0.05)
        said = call(echo, "retried")
    assert said["asked"] == "3"
    assert said["never"][0] == "UNAVAILABLE"
