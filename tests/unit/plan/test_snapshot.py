"""Names become SPIFFE IDs, listeners become addresses to deliver to, equal content has an equal revision."""

import pytest

from hostmesh.errors import Place
from hostmesh.names import UnitName
from hostmesh.plan.facts import HostFacts, UnitFacts
from hostmesh.plan.snapshot import caller_glob, revision_of, snapshot
from hostmesh.policy.model import ClientAddress, Mode, Observe, Policy, Port, Traffic
from hostmesh.policy.settings import Settings
from hostmesh.wire.snapshot import Snapshot

UNIT = UnitName("web.service")
PLACE = Place("web.service.toml", 1)


@pytest.mark.parametrize(
    ("caller", "glob"),
    [
        ("orders", "spiffe://t/unit/orders"),
        ("legacy-*", "spiffe://t/unit/legacy-*"),
        ("*", "spiffe://t/unit/*"),
        ("postgresql@15-main", "spiffe://t/unit/postgresql/15-main"),
        ("postgresql@*", "spiffe://t/unit/postgresql/*"),
        ("a:b", "spiffe://t/unit/a_x3ab"),
        ("a:*", "spiffe://t/unit/a_x3a*"),
        ("spiffe://o/unit/*", "spiffe://o/unit/*"),
    ],
)
def test_callers_are_spiffe_ids(caller: str, glob: str) -> None:
    assert caller_glob("t", caller) == glob


@pytest.mark.parametrize(
    ("listens", "deliver", "seen_address"),
    [
        ([], ["198.18.0.1", "2001:2::1", "127.0.0.1", "::1"], "auto"),
        ([("127.0.0.1", 80)], ["127.0.0.1"], "local"),
        ([("127.0.0.1", 80), ("::1", 80)], ["127.0.0.1", "::1"], "local"),
        ([("0.0.0.0", 80)], ["198.18.0.1", "127.0.0.1"], "keep"),
        ([("::", 80)], ["198.18.0.1", "2001:2::1", "127.0.0.1", "::1"], "keep"),
        ([("127.0.0.1", 80), ("198.18.0.1", 80)], ["198.18.0.1", "127.0.0.1"], "keep"),
        ([("127.0.0.5", 80)], ["127.0.0.5"], "local"),
        ([("127.0.0.1", 9000)], ["198.18.0.1", "2001:2::1", "127.0.0.1", "::1"], "auto"),
    ],
)
def test_where_it_is_delivered(listens: list[tuple[str, int]], deliver: list[str], seen_address: str) -> None:
    unit = made(frozenset(listens)).units[0]
    assert unit.deliver == deliver
    assert unit.ports[0].client_address == seen_address


def made(
    listens: frozenset[tuple[str, int]], *, address: ClientAddress = ClientAddress.AUTO, trust: str = "dA=="
) -> Snapshot:
    ports = (Port(PLACE, 80, client_address=address),)
    policy = Policy(PLACE, UNIT, "web", ports, Mode.ENFORCE, PLACE, (), (), (), Traffic(), None, Observe())
    facts = HostFacts("h1", ("198.18.0.1", "2001:2::1"), {UNIT: UnitFacts(UNIT, True, 0, listens)}, {UNIT: 7})
    return snapshot(Settings(), [policy], facts, (), (trust,))


def test_what_policy_says_of_the_client_address_holds() -> None:
    assert made(frozenset(), address=ClientAddress.LOCAL).units[0].ports[0].client_address == "local"
    assert made(frozenset({("127.0.0.1", 80)}), address=ClientAddress.KEEP).units[0].ports[0].client_address == "keep"


def test_equal_content_equal_revision() -> None:
    first, again, other = made(frozenset()), made(frozenset()), made(frozenset(), trust="b3RoZXI=")
    assert first.revision == again.revision == revision_of(first)
    assert first.revision != other.revision
    assert len(first.revision) == 64


def test_defaults_name_the_file() -> None:
    unit = made(frozenset()).units[0]
    assert (unit.rule_default, unit.rule_outbound_default) == (
        "web.service.toml:no-allow",
        "builtin:no-outbound-policy",
    )
