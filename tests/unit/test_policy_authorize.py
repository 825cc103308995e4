"""The specification of who may, against the vectors that the data plane reads too."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostmesh.policy import authorize, paths
from hostmesh.wire.snapshot import Unit

VECTORS = Path(__file__).parents[1] / "vectors"
AUTHORIZE: list[dict[str, Any]] = json.loads((VECTORS / "authorize.json").read_text())["cases"]
PATHS: list[dict[str, Any]] = json.loads((VECTORS / "paths.json").read_text())["cases"]


def decide(case: dict[str, Any]) -> tuple[authorize.Decision, list[str] | None]:
    """And the limits that fit, where the case has any."""
    unit = msgspec.convert(case["unit"], Unit)
    if "outbound" in case:
        return authorize.outbound(unit, authorize.Destination(**case["outbound"])), None
    who = case["caller"]
    caller: authorize.Peer | authorize.Plaintext
    if "spiffe_id" in who:
        caller = authorize.Peer(who["spiffe_id"])
    else:
        caller = authorize.Plaintext(who["plaintext"], who["local"])
    request = None
    if "method" in case:
        headers = tuple((name, value) for name, value in case["headers"])
        token = case.get("token", {})
        bad = authorize.BadToken(token["bad"]) if "bad" in token else None
        request = authorize.Request(case["method"], case["path"], headers, bad or token.get("claims"))
    limits = authorize.limits(unit, caller, case["port"], request) if unit.limits else None
    fitting = None if limits is None else [tried.rule for tried in limits if tried.fits]
    return authorize.inbound(unit, caller, case["port"], request), fitting


@pytest.mark.parametrize("case", AUTHORIZE, ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    decision, limits = decide(case)
    assert (decision.verdict.value, decision.rule) == (case["expect"]["verdict"], case["expect"]["rule"])
    assert decision.audited == case["expect"].get("audited", "")
    assert limits == case["expect"].get("limits")
    assert decision.trace or decision.rule.endswith((":no-allow", ":no-plaintext", ":no-outbound"))


def test_vectors_name_every_verdict_and_each_case_once() -> None:
    assert {case["expect"]["verdict"] for case in AUTHORIZE} == {verdict.value for verdict in authorize.Verdict}
    names = [case["name"] for case in AUTHORIZE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", PATHS, ids=lambda case: repr(case["path"]))
def test_normal_path(case: dict[str, Any]) -> None:
    if case["normal"] is None:
        with pytest.raises(paths.AmbiguousPath):
            paths.normal_path(case["path"])
    else:
        assert paths.normal_path(case["path"]) == case["normal"]
        assert paths.normal_path(case["normal"]) == case["normal"], "a normal form is its own"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a?b=/c", "/a"),
        ("http://h/a?b", "/a"),
        ("http://h", "/"),
        ("*", "*"),
        ("/x?u=http://h/y", "/x"),
        ("/a://b", "/a://b"),
    ],
)
def test_path_of_target(target: str, path: str) -> None:
    assert paths.path_of_target(target) == path


def test_an_undeclared_port_is_refused_even_in_audit() -> None:
    unit = msgspec.structs.replace(msgspec.convert(AUTHORIZE[0]["unit"], Unit), mode="audit")
    decision = authorize.inbound(unit, authorize.Peer("spiffe://mesh.local/unit/orders"), 9999)
    assert (decision.verdict, decision.rule) == (authorize.Verdict.DENY, "inventory.service.toml:no-allow")


def test_the_trace_tells_every_rule_up_to_the_one_that_decided() -> None:
    case = next(case for case in AUTHORIZE if case["name"] == "two rules, the second fits")
    tried = [(step.rule, step.fits, step.why) for step in decide(case)[0].trace]
    assert tried == [
        ("inventory.service.toml:10", False, "not for port 8080"),
        ("inventory.service.toml:13", True, "fits"),
    ]
