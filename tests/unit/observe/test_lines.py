"""What a person reads in the journal, and how much of it."""

import msgspec
import pytest

from hostmesh.observe.lines import LineLimit, caller_name, event_fields, refusal_fields, sentence
from hostmesh.observe.nflog import Refusal
from hostmesh.wire.proxy_control import Event

FILE = "/etc/hostmesh/policies/inventory.service.toml"
DENIED = Event(
    time_ns=1, kind="denied", unit="inventory.service", direction="inbound", verdict="deny", rule=f"{FILE}:14",
    peer="spiffe://mesh.test/unit/web", service="inventory", port=8080, protocol="http", message="",
    client="198.18.0.1", method="GET", path="/products/7", status=403, tries=1, trace_id="a" * 32, span_id="b" * 16,
)  # fmt: skip


def changed(**values: object) -> Event:
    return msgspec.structs.replace(DENIED, **values)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (DENIED, f"denied: web (spiffe://mesh.test/unit/web) GET /products/7 on port 8080, by {FILE}:14"),
        (
            changed(verdict="audit-deny"),
            "would be denied, let pass (audit): web (spiffe://mesh.test/unit/web) GET /products/7 on port 8080, "
            f"by {FILE}:14",
        ),
        (
            changed(kind="breaker", verdict="allow", method="", message="breaker open: x has max_pending = 2 in use"),
            f"breaker open: x has max_pending = 2 in use, by {FILE}:14",
        ),
        (
            changed(peer="plaintext", method="", path="", rule=f"{FILE}:no-allow"),
            f"denied: plaintext from 198.18.0.1 on port 8080, by {FILE}:no-allow",
        ),
        (
            changed(direction="outbound", method="", path="", service="db", port=5432, rule=f"{FILE}:no-outbound"),
            f"denied: to db on port 5432, by {FILE}:no-outbound",
        ),
        (
            changed(
                direction="outbound",
                peer="passthrough",
                service="",
                message="a.service may not call 192.0.2.9 on port 9",
            ),
            f"denied: a.service may not call 192.0.2.9 on port 9, by {FILE}:14",
        ),
        (
            changed(method="", path="", duration_us=2_345_678),
            f"denied: web (spiffe://mesh.test/unit/web) on port 8080, by {FILE}:14; "
            "it was open for 2.346 s and is ended",
        ),
        (
            changed(kind="request", verdict="allow", direction="outbound", status=503, duration_us=12_345, tries=2),
            "503: GET /products/7 to inventory on port 8080 in 12.3 ms, try 2",
        ),
        (
            changed(kind="error", verdict="allow", status=0, message="connection refused", method="", path=""),
            "error: web (spiffe://mesh.test/unit/web) on port 8080: connection refused",
        ),
    ],
)
def test_sentence(event: Event, text: str) -> None:
    assert sentence(event) == text


def test_fields_of_a_denial() -> None:
    fields = event_fields(DENIED)
    assert fields["OBJECT_SYSTEMD_UNIT"] == fields["HOSTMESH_UNIT"] == "inventory.service"
    assert fields["HOSTMESH_RULE"] == f"{FILE}:14"
    assert fields["HOSTMESH_VERDICT"] == "deny"
    assert fields["HOSTMESH_STATUS"] == 403
    assert (fields["TRACE_ID"], fields["SPAN_ID"]) == ("a" * 32, "b" * 16)
    assert fields["PRIORITY"] == 4


def test_what_is_not_known_is_no_field() -> None:
    fields = event_fields(changed(status=0, method="", path="", trace_id="", span_id="", duration_us=0))
    assert (
        not {"HOSTMESH_STATUS", "HOSTMESH_METHOD", "HOSTMESH_PATH", "TRACE_ID", "HOSTMESH_DURATION_US"} & fields.keys()
    )


def test_kernel_refusal_without_a_unit_is_the_hosts_own_line() -> None:
    fields = refusal_fields("", "builtin:vip", Refusal("hostmesh vip", 6, "2001:2::9", 40000, "fd00:240::5", 80))
    assert "OBJECT_SYSTEMD_UNIT" not in fields
    assert fields["MESSAGE"] == "refused by the kernel: [2001:2::9]:40000 to [fd00:240::5]:80, by builtin:vip"


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("spiffe://mesh.test/unit/web", "web"),
        ("spiffe://mesh.test/unit/postgresql/15-main", "postgresql@15-main"),
        ("spiffe://mesh.test/unit/odd_x5cname", "spiffe://mesh.test/unit/odd_x5cname"),
        ("spiffe://other.test/host/h1", "spiffe://other.test/host/h1"),
        ("plaintext", "plaintext"),
    ],
)
def test_caller_as_a_policy_names_it(peer: str, name: str) -> None:
    assert caller_name(peer) == name


def test_limit_is_per_unit_and_tells_what_it_held_back() -> None:
    limit = LineLimit(lines=3, seconds=10.0)
    assert [limit.admit("a", "request", 0.1 * i) for i in range(5)] == [True, True, True, False, False]
    assert limit.admit("a", "denied", 1.0), "calls do not hide a denial"
    assert limit.admit("b", "request", 1.0)
    assert limit.due(9.9) == []
    assert limit.due(10.0) == [("a", "request", 2)]
    assert limit.due(11.0) == []
    assert limit.admit("a", "request", 11.0)
    assert limit.total_suppressed == 2


def test_an_entry_has_its_route_and_flag_only_where_there_are_any() -> None:
    told = event_fields(changed(route="canary", flag="redirected"))
    assert (told["HOSTMESH_ROUTE"], told["HOSTMESH_FLAG"]) == ("canary", "redirected")
    assert not {"HOSTMESH_ROUTE", "HOSTMESH_FLAG"} & event_fields(DENIED).keys()
