"""The specification of routes, against the vectors that the data plane reads too."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostmesh.names import BadName
from hostmesh.policy.authorize import Request
from hostmesh.policy.paths import path_of_target
from hostmesh.policy.route_choice import Asked, Then, choose
from hostmesh.policy.templates import Template
from hostmesh.wire.snapshot import Route

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "routes.json").read_text())
CASES: list[dict[str, Any]] = VECTORS["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    routes = msgspec.convert(VECTORS["routes"][case["routes"]], list[Route])
    headers = tuple((name, value) for name, value in case.get("headers", []))
    request = Request(case["method"], path_of_target(case["target"]), headers)
    asked = Asked(request, case["target"].partition("?")[2], case.get("source", "127.0.0.1"))
    random = iter(case.get("random", []))
    choice = choose(routes, asked, random)
    told = {name: value for name, value in asdict(choice).items() if value and name != "route"}
    if choice.route:
        told["route"] = choice.route.name
    assert told == case["expect"]
    assert next(random, None) is None, "all of the numbers are drawn"


def test_vectors_show_every_outcome_and_each_case_once() -> None:
    assert {case["expect"]["then"] for case in CASES} == {then.value for then in Then}
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "text",
    ["", "x", "/a*b", "/a/{}", "/a/{b", "/a/b}", "/a{b}", "/a/{b}c", "/{a}*", "/{a}/{a}", "/{a b}", "/../a", "/a//b",
     "/%7e", "/a?b", "//{a}"],
)  # fmt: skip
def test_no_template(text: str) -> None:
    with pytest.raises(BadName):
        Template.parse(text)
