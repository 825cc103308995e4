"""What is said of recorded requests by policies that are not in force: judged where the record is enough for it."""

from datetime import datetime, timedelta, timezone

import pytest

from hostmesh.cli.replay import moment
from hostmesh.cli.replay_report import Report
from hostmesh.errors import HostmeshError
from hostmesh.observe.recorded import recorded
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.snapshot import snapshot, traffic_of
from hostmesh.policy.hindsight import Change, NewPolicies, Outcome, Recorded, judge, template
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load

ENTRY = {
    "HOSTMESH_UNIT": "inventory.service", "HOSTMESH_KIND": "request", "HOSTMESH_VERDICT": "allow",
    "HOSTMESH_DIRECTION": "inbound", "HOSTMESH_PEER": "spiffe://mesh.local/unit/orders", "HOSTMESH_PORT": "8080",
    "HOSTMESH_SERVICE": "inventory", "HOSTMESH_METHOD": "GET", "HOSTMESH_PATH": "/products/7", "HOSTMESH_RULE": "old:1",
}  # fmt: skip
SERVICE = '[service]\nname = "inventory"\n[service.ports]\n8080 = "http"\n'
ALLOW = '[[inbound.allow]]\nfrom = ["orders"]\n'


def policies(inbound: str, outbound: str = "") -> NewPolicies:
    loaded = load(
        {"inventory.service.toml": SERVICE + inbound, **({"orders.service.toml": outbound} if outbound else {})}
    )
    numbers = {policy.unit: index for index, policy in enumerate(loaded, 1)}
    compiled = snapshot(Settings(host="h1"), loaded, HostFacts("h1", (), {}, numbers), [], [])
    routes = {policy.service: traffic_of(policy).routes for policy in loaded if policy.ports}
    return NewPolicies(
        units={unit.unit: unit for unit in compiled.units},
        routes=routes,
        known_routes={"gone": frozenset({"inventory"})}
        | {route.name: frozenset({service}) for service, found in routes.items() for route in found},
    )


def of(**changes: str) -> Recorded:
    """A recorded request with these fields."""
    fields = {f"HOSTMESH_{name.upper()}": value for name, value in changes.items()}
    found = recorded({**ENTRY, **fields}, is_all=True)
    assert found
    return found


@pytest.mark.parametrize(
    ("inbound", "request_", "outcome"),
    [
        (ALLOW, of(), Outcome(Change.NONE, "inventory.service.toml:5")),
        ("", of(), Outcome(Change.DENIED, "inventory.service.toml:no-allow")),
        (ALLOW, of(kind="denied", verdict="deny"), Outcome(Change.ALLOWED, "inventory.service.toml:5")),
        ("", of(kind="denied", verdict="deny"), Outcome(Change.NONE, "inventory.service.toml:no-allow")),
        ('[inbound]\nmode = "audit"\n', of(), Outcome(Change.NONE, "inventory.service.toml:no-allow")),
        (ALLOW + 'paths = ["/x/*"]\n', of(), Outcome(Change.DENIED, "inventory.service.toml:no-allow")),
        (ALLOW + 'headers = { x-a = "1" }\n', of(),
         Outcome(Change.UNKNOWN, "inventory.service.toml:5", "inventory.service.toml:5 asks for headers or a token")),
        (ALLOW + 'headers = { x-a = "1" }\n' + ALLOW, of(), Outcome(Change.NONE, "inventory.service.toml:5")),
        (ALLOW + 'headers = { x-a = "1" }\npaths = ["/x"]\n', of(),
         Outcome(Change.DENIED, "inventory.service.toml:no-allow")),
        (ALLOW + '[[inbound.deny]]\nfrom = ["*"]\nheaders = { x-a = "1" }\n', of(),
         Outcome(Change.UNKNOWN, "inventory.service.toml:5", "inventory.service.toml:7 asks for headers or a token")),
        (ALLOW + '[[inbound.deny]]\nfrom = ["*"]\nheaders = { x-a = "1" }\npaths = ["/x"]\n', of(),
         Outcome(Change.NONE, "inventory.service.toml:5")),
        ('[[inbound.plaintext]]\nfrom = ["198.18.0.3/32"]\nports = [8080]\n', of(peer="plaintext", client="198.18.0.3"),
         Outcome(Change.NONE, "inventory.service.toml:5")),
        ('[[inbound.plaintext]]\nfrom = ["198.18.0.3/32"]\nports = [8080]\n', of(peer="plaintext", client="198.18.0.4"),
         Outcome(Change.DENIED, "inventory.service.toml:no-plaintext")),
        (ALLOW + 'methods = ["GET"]\n', of(method="", kind="connection"),
         Outcome(Change.UNKNOWN, "inventory.service.toml:5",
                 "of a connection that was carried unread no request is recorded")),
    ],
)  # fmt: skip
def test_who_may_come(inbound: str, request_: Recorded, outcome: Outcome) -> None:
    assert judge(request_, policies(inbound)) == outcome


OUT = {"unit": "orders.service", "direction": "outbound", "peer": "spiffe://mesh.local/unit/inventory"}
ROUTES = """[[traffic.route]]
name = "canary"
match = { path = "/products/{id}", headers = { x-canary = "1" } }
to = "inventory"
[[traffic.route]]
name = "all"
match = { path = "/x/*" }
to = "inventory"
"""


@pytest.mark.parametrize(
    ("request_", "outbound", "change", "rule"),
    [
        (of(**OUT, path="/y"), '[outbound]\nallow = ["inventory"]\n', Change.NONE, "orders.service.toml:2"),
        (of(**OUT, path="/y"), '[outbound]\nallow = ["db"]\n', Change.DENIED, "orders.service.toml:no-outbound"),
        (of(**{**OUT, "service": ""}), '[outbound]\nallow = ["db"]\n', Change.UNKNOWN, ""),
        (of(**OUT, path="/x/1"), "", Change.ROUTED, "inventory.service.toml:9"),
        (of(**OUT, path="/x/1", route="all"), "", Change.NONE, "inventory.service.toml:9"),
        (of(**OUT, path="/y", route="all"), "", Change.ROUTED, "inventory: no route"),
        (of(**OUT, path="/y", route="gone"), "", Change.ROUTED, "inventory: no route"),
        (of(**OUT, path="/products/7"), "", Change.UNKNOWN, "inventory.service.toml:5"),
    ],
)
def test_where_it_may_go_and_by_which_route(request_: Recorded, outbound: str, change: Change, rule: str) -> None:
    outcome = judge(request_, policies(ROUTES, outbound))
    assert outcome and (outcome.change, outcome.rule) == (change, rule)


def test_what_no_policy_speaks_of_is_not_judged() -> None:
    assert judge(of(unit="db.service"), policies(ALLOW)) is None
    assert judge(of(**{**OUT, "service": "db"}), policies(ALLOW)) is None


@pytest.mark.parametrize(
    ("changes", "is_all", "passed"),
    [
        ({}, True, True),
        ({"HOSTMESH_KIND": "error"}, True, True),
        ({"HOSTMESH_KIND": "error", "HOSTMESH_METHOD": ""}, True, None),
        ({"HOSTMESH_KIND": "retry"}, True, None),
        ({"HOSTMESH_FLAG": "mirrored"}, True, None),
        ({"HOSTMESH_KIND": "error", "HOSTMESH_FLAG": "shed"}, True, None),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "deny", "HOSTMESH_FLAG": "limited"}, True, True),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "deny", "HOSTMESH_FLAG": "refused"}, True, True),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "deny", "HOSTMESH_FLAG": "no-verdict"}, True, True),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "deny"}, True, False),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "audit-deny"}, True, None),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "audit-deny"}, False, True),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "audit-allow"}, False, None),
        ({"HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "deny", "HOSTMESH_RULE": "builtin:vip"}, True, None),
        ({"HOSTMESH_KIND": "", "MESSAGE": "in force after 5 ms"}, True, None),
    ],
)
def test_which_lines_are_requests(changes: dict[str, str], is_all: bool, passed: bool | None) -> None:
    found = recorded({**ENTRY, **changes}, is_all=is_all)
    assert (found.passed if found else None) is passed


@pytest.mark.parametrize(
    ("client", "rule", "direction"),
    [
        ("198.18.0.3", "a.toml:no-plaintext", "inbound"),
        ("127.0.0.1", "a.toml:no-plaintext", "local"),
        ("198.18.0.1", "a.toml:no-outbound", "outbound"),
    ],
)
def test_what_the_kernel_refused(client: str, rule: str, direction: str) -> None:
    entry = {
        "HOSTMESH_UNIT": "a.service", "HOSTMESH_KIND": "denied", "HOSTMESH_VERDICT": "deny", "HOSTMESH_PORT": "80",
        "HOSTMESH_PEER": "plaintext", "HOSTMESH_CLIENT": client, "HOSTMESH_RULE": rule,
    }  # fmt: skip
    found = recorded(entry, is_all=True)
    assert found and (found.direction, found.passed, found.method) == (direction, False, "")


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("/products/7/reviews", "/products/{}/reviews"),
        ("/v2/users/9f86d081-884c-4d65-9a2f-eaa0c55ad015", "/{}/users/{}"),
        ("/deadbeefdeadbeef", "/{}"),
        ("/decade", "/decade"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_like_paths_are_one(path: str, like: str) -> None:
    assert template(path) == like


NOW = datetime(2026, 11, 25, 14, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "hours_ago"),
    [("today", 14.5), ("yesterday", 38.5), ("90m", 1.5), ("12h", 12), ("7d", 168)],
)
def test_when(text: str, hours_ago: float) -> None:
    assert moment(text, NOW) == NOW - timedelta(hours=hours_ago)


def test_no_time_at_all() -> None:
    assert moment("2026-11-25T08:00+01:00", NOW) == NOW.replace(hour=8, minute=0)
    with pytest.raises(HostmeshError, match="'soon' is no time"):
        moment("soon", NOW)


def test_a_report_sums_up_like_requests() -> None:
    report = Report(NOW)
    for path in ("/products/7", "/products/8"):
        report.add(of(path=path), Outcome(Change.DENIED, "new:1"))
    report.add(of(), Outcome(Change.NONE, "new:2"))
    assert report.is_changed
    report.suppressed("inventory.service", 5)
    report.silent = {"web.service": "nothing"}
    head, _, title, columns, row, _, *notes = report.text().splitlines()
    assert head.startswith(
        "3 requests since 2026-11-25 14:30: 2 would now be denied, 0 allowed, 0 take another route; 0"
    )
    assert (title, columns.split()[0]) == ("WOULD NOW BE DENIED", "TIMES")
    assert row.split() == ["2", "orders", "inventory", "GET", "/products/{}", "old:1", "new:1"]
    assert notes[0] == "not recorded: web.service: nothing" and "5 lines, too many at once" in notes[1]
    [group] = report.as_json()["groups"]  # type: ignore[misc]
    assert group["count"] == 2  # type: ignore[index]


def test_what_cannot_be_judged_is_no_change() -> None:
    report = Report(NOW)
    report.add(of(), Outcome(Change.UNKNOWN, "new:1", "it asks for a token"))
    assert not report.is_changed and "it asks for a token" in report.text()
