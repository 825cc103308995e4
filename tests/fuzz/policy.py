"""Fuzzes policy files: each is refused with places that are in it, or gives a policy that compiles."""

from hostmesh.errors import PolicyError
from hostmesh.names import UnitName
from hostmesh.plan.compile import compile_plan
from hostmesh.plan.facts import HostFacts
from hostmesh.policy.findings import Code
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load
from hostmesh.wire.codec import encode
from hostmesh.wire.proxy_control import SetSnapshot

FILE = "web.service.toml"
VIPS = ("240.240.0.0/16", "fd00:240::/112")
FACTS = HostFacts("h1", ("198.18.7.1", "2001:2:7::1"), {}, {UnitName("web.service"): 7})


def one(data: bytes) -> None:
    """One file."""
    text = data.decode("utf-8", "replace")
    try:
        policies = load({FILE: text})
    except PolicyError as error:
        check_places(error, FILE, text)
        return
    plan = compile_plan(Settings(host="h1"), policies, FACTS, (), (), VIPS)
    assert plan.snapshot is not None
    encode(SetSnapshot(1, plan.snapshot))


def check_places(error: PolicyError, file: str, text: str) -> None:
    """Every finding says what, and where in this file; the whole file is meant only by what it lacks."""
    lines = text.split("\n")
    assert error.diagnostics, "refused without a reason"
    for finding in error.diagnostics:
        place = finding.place
        assert finding.code in set(Code)
        assert finding.message, finding
        assert place.file == file, finding
        if place.line == 0:
            assert finding.code == Code.MISSING, finding
            continue
        assert place.line <= len(lines), finding
        assert 1 <= place.column <= len(lines[place.line - 1]) + 2, finding
