"""`[[inbound.limit]]`: what is read, what is said about bad ones, and what a person is told of them."""

import pytest

from hostmesh.errors import PolicyError
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.snapshot import snapshot
from hostmesh.policy.authorize import Peer, Request, limits
from hostmesh.policy.model import Limit
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load

FILE = "inventory.service.toml"
HEAD = '[service.ports]\n8080 = "http"\n5432 = "tcp"\n[[inbound.allow]]\nfrom = ["orders"]\n[[inbound.limit]]\n'
ORDERS = Peer("spiffe://mesh.local/unit/orders")


def read(text: str) -> Limit:
    (limit,) = load({FILE: HEAD + text})[0].limits
    return limit


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('rate = "100/s"', (100, 1000, 100, 0, "caller")),
        ('rate = "100/s"\nburst = 10', (100, 1000, 10, 0, "caller")),
        ('rate = "600/m"', (600, 60_000, 10, 0, "caller")),
        ('rate = "5/h"\nper = "all"', (5, 3_600_000, 1, 0, "all")),
        ("concurrent = 50", (0, 0, 0, 50, "caller")),
    ],
)
def test_what_is_read(text: str, numbers: tuple[int, int, int, int, str]) -> None:
    limit = read(text)
    assert (limit.requests, limit.window_ms, limit.burst, limit.concurrent, limit.per) == numbers
    assert (limit.rule.place.rule, limit.rule.callers) == (f"{FILE}:6", ())


def test_what_it_holds_for_is_read_as_in_allow() -> None:
    more = (
        'from = ["orders", "legacy-*"]\nports = [8080]\nmethods = ["GET"]\npaths = ["/x/*"]\nheaders = { X-A = "1" }\n'
    )
    rule = read(more + "concurrent = 1").rule
    assert (rule.callers, rule.ports, rule.methods) == (("orders", "legacy-*"), (8080,), ("GET",))
    assert (rule.paths, rule.headers) == (("/x/*",), (("x-a", "1"),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('from = ["orders"]', "has neither 'rate' nor 'concurrent'"),
        ('rate = "100"', "'100' is not a rate"),
        ('rate = "0/s"', "'0/s' is not a rate"),
        ('rate = "2000000/s"', "'2000000/s' is not a rate"),
        ('rate = "1/d"', "'1/d' is not a rate"),
        ("rate = 100", "expected a string"),
        ("concurrent = 0", "0 is not in 1..1000000"),
        ("concurrent = 1\nburst = 2", "'burst' is of a rate"),
        ('concurrent = 1\nper = "caler"', "'caler' is none of: all, caller"),
        ("concurrent = 1\njwt = {}", "unknown key 'jwt'"),
        ("concurrent = 1\naudit = true", "unknown key 'audit'"),
        ('concurrent = 1\nports = [5432]\nmethods = ["GET"]', "which is carried unread"),
    ],
)
def test_what_is_said_about_bad_ones(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        read(text)
    assert said in str(refused.value)


def test_a_person_is_told_which_hold_and_what_they_say() -> None:
    text = (
        'rate = "100/s"\nburst = 10\nconcurrent = 5\n[[inbound.limit]]\nmethods = ["POST"]\nrate = "5/h"\nper = "all"\n'
    )
    policies = load({FILE: HEAD + text})
    facts = HostFacts("h1", (), {}, {policies[0].unit: 1})
    unit = snapshot(Settings(), policies, facts, [], []).units[0]
    tried = [(one.rule, one.fits, one.why) for one in limits(unit, ORDERS, 8080, Request("GET", "/"))]
    assert tried == [
        (f"{FILE}:6", True, "at most 100/s, 10 at once and 5 under way, per caller"),
        (f"{FILE}:10", False, "not for method GET"),
    ]
    assert limits(unit, ORDERS, 8080, Request("post", "/"))[1].why == "at most 5/h, 1 at once, per all"
    assert [one.fits for one in limits(unit, ORDERS, 5432, None)] == [True, False]
