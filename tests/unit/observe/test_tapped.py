"""Which records of a tap are wanted, and how one reads."""

import re

import msgspec
import pytest

from hostmesh.cli.tap_lines import line
from hostmesh.observe.tapped import fits
from hostmesh.wire.agent_control import Wanted
from hostmesh.wire.proxy_control import Event

CALL = Event(
    1_700_000_000_123_000_000, "request", "orders.service", "outbound", "allow", "inventory.service.toml:9",
    "spiffe://m/unit/inventory", "inventory", 80, "http", "", "198.18.0.1", "GET", "/products/7", 503, None, 2, 101_500,
    10, 20, "4bf9", "", "canary", "timeout", "inventory.service on h2",
)  # fmt: skip
COMING = msgspec.structs.replace(
    CALL, unit="inventory.service", direction="inbound", peer="spiffe://m/unit/orders", status=200, flag=""
)
DENIED = msgspec.structs.replace(COMING, kind="denied", verdict="deny", status=0, duration_us=0)
PLAIN = msgspec.structs.replace(COMING, peer="plaintext", client="198.18.0.3")


@pytest.mark.parametrize(
    ("wanted", "which"),
    [
        (Wanted(), "1111"),
        (Wanted(callers=["orders"]), "1110"),
        (Wanted(callers=["198.18.0.*"]), "0001"),
        (Wanted(callees=["inv*", "nobody"]), "1111"),
        (Wanted(callees=["orders"]), "0000"),
        (Wanted(methods=["POST"]), "0000"),
        (Wanted(methods=["POST", "GET"]), "1111"),
        (Wanted(paths=["/products/*"]), "1111"),
        (Wanted(paths=["/products"]), "0000"),
        (Wanted(statuses=["5xx"]), "1000"),
        (Wanted(statuses=["200", "404"]), "0101"),
        (Wanted(slow_us=101_500), "1101"),
        (Wanted(slow_us=101_501), "0000"),
        (Wanted(denied=True), "0010"),
        (Wanted(failed=True), "1000"),
        (Wanted(failed=True, denied=True), "1010"),
        (Wanted(failed=True, callers=["shop"]), "0000"),
    ],
)
def test_what_is_wanted(wanted: Wanted, which: str) -> None:
    events = (CALL, COMING, DENIED, PLAIN)
    assert "".join(str(int(fits(event, wanted))) for event in events) == which


@pytest.mark.parametrize("kind", ["wire", "token", "breaker"])
def test_what_is_no_traffic_is_not_shown(kind: str) -> None:
    assert not fits(msgspec.structs.replace(CALL, kind=kind), Wanted())


def test_a_stream_that_failed_over_grpc_is_an_error() -> None:
    answered = msgspec.structs.replace(COMING, grpc_status=0)
    assert not fits(answered, Wanted(failed=True))
    assert fits(msgspec.structs.replace(COMING, grpc_status=14), Wanted(failed=True))


def test_a_line_has_all_that_is_known() -> None:
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.123  orders > inventory:80  GET /products/7  503  101\.5 ms  by inventory\.service\.toml:9  "
        r"route canary  at inventory\.service on h2  try 2  flag timeout  trace 4bf9",
        line(CALL),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "denied", "verdict": "deny"}, "DENIED  by inventory.service.toml:9"),
        ({"kind": "denied", "verdict": "audit-deny"}, "would be denied (audit)"),
        ({"kind": "retry", "tries": 1}, "retry  by"),
        ({"kind": "connection", "method": "", "protocol": "tcp", "status": 0}, "tcp  101.5 ms  connection  by"),
        ({"kind": "connection"}, "10 B in, 20 B out"),
        ({"kind": "error", "message": "no one there"}, "no one there"),
        ({"grpc_status": 5}, "grpc-status 5"),
    ],
)
def test_other_lines(change: dict[str, object], says: str) -> None:
    assert says in line(msgspec.structs.replace(COMING, **change))
