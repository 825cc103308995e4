"""The order of changes is safety; and a plan that is there needs none."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.errors import Place
from hostmesh.names import UnitName
from hostmesh.plan.compile import Plan, compile_plan, empty_plan
from hostmesh.plan.diff import (
    AddPolicyRule,
    ChangeRuleset,
    DeletePolicyRule,
    Observed,
    ReloadUnits,
    RemoveFile,
    RestoreSysctl,
    SendSnapshot,
    SetSysctl,
    StartSlice,
    StopSlice,
    WriteFile,
    diff,
)
from hostmesh.plan.elements import TableState, read_listing
from hostmesh.plan.facts import HostFacts
from hostmesh.policy.model import Mode, Observe, Policy, Port, Traffic
from hostmesh.policy.settings import Settings

NOTHING = Observed(None, {}, {}, frozenset(), frozenset(), frozenset(), frozenset(), {}, False, "")
NAMES = ("api", "db", "redis-server", "postgresql@15-main", "web")


def policy(name: str) -> Policy:
    place = Place(f"{name}.service.toml", 1)
    unit = UnitName(f"{name}.service")
    ports = (Port(place, 8000 + NAMES.index(name)),)
    return Policy(place, unit, "s", ports, Mode.AUDIT, place, (), (), (), Traffic(), None, Observe())


def plan(*names: str) -> Plan:
    numbers = {UnitName(f"{name}.service"): index + 1 for index, name in enumerate(NAMES)}
    facts = HostFacts("h1", ("198.18.0.1",), {}, numbers)
    return compile_plan(Settings(host="h1"), [policy(n) for n in names], facts, (), ("dHJ1c3Q=",), ("240.240.0.0/16",))


def there(made: Plan) -> Observed:
    """A host on which the plan was applied, as it would be observed."""
    assert made.table
    assert made.snapshot
    table = made.table
    comments = {chain.name: tuple(rule.comment for rule in chain.rules) for chain in table.chains}
    sets = {item.name: tuple(sorted(item.elements)) for item in table.sets}
    return Observed(
        table=TableState(table.structure, comments, {}, sets),
        sysctls=dict(made.sysctls),
        before=dict.fromkeys(made.sysctls, "0"),
        rules=frozenset(made.rules),
        routes=frozenset(made.routes),
        slices=frozenset(made.slices),
        idle=frozenset(),
        files=dict(made.files),
        reload=False,
        proxy_revision=made.snapshot.revision,
    )


@given(st.permutations(NAMES), st.sets(st.sampled_from(NAMES)))
def test_the_order_of_policies_does_not_matter(order: list[str], chosen: set[str]) -> None:
    assert plan(*(name for name in order if name in chosen)) == plan(*sorted(chosen))


@given(st.sets(st.sampled_from(NAMES)))
def test_what_is_there_needs_nothing(chosen: set[str]) -> None:
    assert diff(plan(*chosen), there(plan(*chosen))) == ()


def test_a_units_slice_and_the_proxys_knowledge_come_before_its_packets() -> None:
    changes = diff(plan("web"), NOTHING)
    kinds = [type(change) for change in changes]
    assert kinds[:3] == [WriteFile, ReloadUnits, StartSlice]
    order = [kinds.index(kind) for kind in (StartSlice, SetSysctl, SendSnapshot, AddPolicyRule, ChangeRuleset)]
    assert order == sorted(order)
    assert kinds[-1] is ChangeRuleset
    assert len({change.name for change in changes}) == len(changes)


def test_a_unit_leaves_with_its_elements_before_its_slice() -> None:
    wanted, observed = plan("api"), replace(there(plan("api", "web")), idle=frozenset({"mesh-web.slice"}))
    changes = diff(wanted, observed)
    assert [type(change) for change in changes] == [RemoveFile, ReloadUnits, SendSnapshot, ChangeRuleset, StopSlice]
    (ruleset,) = (change for change in changes if isinstance(change, ChangeRuleset))
    # under audit everybody may call, by the proxy: those elements go too, the interval sets flushed and filled
    assert ruleset.what == (
        "units +0 -1; meshed +0 -1; listeners +0 -2; unrestricted +0 -1; "
        "plaintext4 +0 -1; plaintext6 +0 -1; plaintext_local +0 -1"
    )
    assert 'delete element inet hostmesh units { "mesh.slice/mesh-web.slice" }' in ruleset.text
    assert "flush set inet hostmesh plaintext4\nadd element inet hostmesh plaintext4 { 0.0.0.0/0 . 8000" in ruleset.text


def test_a_slice_with_a_running_unit_is_not_stopped() -> None:
    changes = diff(plan("api"), there(plan("api", "web")))
    assert not any(isinstance(change, StopSlice) for change in changes)


def test_removal_takes_the_ruleset_before_what_it_needs() -> None:
    changes = diff(empty_plan(), there(plan("api")))
    kinds = [type(change) for change in changes]
    assert kinds.index(ChangeRuleset) < kinds.index(DeletePolicyRule) < kinds.index(RestoreSysctl)
    assert [change.text for change in changes if isinstance(change, ChangeRuleset)] == ["delete table inet hostmesh\n"]


@pytest.mark.parametrize(("revision", "sends"), [("", 1), ("another", 1), (None, 0)])
def test_a_proxy_that_does_not_answer_is_not_waited_for(revision: str | None, sends: int) -> None:
    changes = diff(plan("api"), replace(there(plan("api")), proxy_revision=revision))
    assert sum(isinstance(change, SendSnapshot) for change in changes) == sends == len(changes)


def test_files_that_changed_before_a_crash_are_reloaded() -> None:
    assert diff(plan("api"), replace(there(plan("api")), reload=True)) == (ReloadUnits(),)


def test_a_policy_without_a_number_yet_gets_its_files_only() -> None:
    facts = HostFacts("h1", (), {}, {})
    made = compile_plan(Settings(host="h1"), [policy("web")], facts, (), ())
    assert made.slices == ()
    assert made.snapshot
    assert made.snapshot.units == []
    assert list(made.files) == ["/etc/systemd/system/web.service.d/50-hostmesh.conf"]


def test_a_listing_is_read_as_it_was_rendered() -> None:
    listing = json.loads("""{"nftables": [{"metainfo": {}}, {"table": {"family": "inet", "name": "hostmesh"}},
      {"map": {"name": "units", "type": "cgroupsv2", "comment": "structure abc", "map": "mark", "elem": [
        [{"elem": {"val": "mesh.slice/mesh-redis\\\\x2dserver.slice", "comment": "r.toml:1"}}, 16777217],
        [{"elem": {"val": "1640", "comment": "gone.toml:1"}}, 16777218]]}},
      {"set": {"name": "plaintext4", "type": ["ipv4_addr", "inet_service"], "elem": [
        {"elem": {"val": {"concat": [{"prefix": {"addr": "198.18.0.0", "len": 16}}, 80]}, "comment": "r.toml:2"}}]}},
      {"set": {"name": "refused", "type": "mark", "elem": [
        {"elem": {"val": 7, "counter": {"packets": 5, "bytes": 300}}}]}},
      {"chain": {"name": "output"}},
      {"rule": {"chain": "output", "comment": "why", "expr": []}}]}""")
    state = read_listing(listing)
    assert state
    assert (state.structure, state.rules) == ("abc", {"output": ("why",)})
    assert state.types["plaintext4"] == ("ipv4_addr", "inet_service")
    keys = {name: [(e.key, e.value, e.comment, e.packets) for e in found] for name, found in state.sets.items()}
    assert keys == {
        "units": [
            ('"1640"', "0x01000002", "gone.toml:1", 0),
            ('"mesh.slice/mesh-redis\\x2dserver.slice"', "0x01000001", "r.toml:1", 0),
        ],
        "plaintext4": [("198.18.0.0/16 . 80", "", "r.toml:2", 0)],
        "refused": [("0x00000007", "", "", 5)],
    }
