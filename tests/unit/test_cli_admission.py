"""Which units can be meshed, and which could step round it."""

from dataclasses import replace

import pytest

from hostmesh.cli.admission import implicit_slice, loopholes, objections
from hostmesh.cli.unit_facts import UnitFact
from hostmesh.names import UnitName

ALL = (1 << 41) - 1
GOOD = UnitFact(UnitName("web.service"), "loaded", "active", "system.slice", user="web", capabilities=ALL)


@pytest.mark.parametrize(
    ("fact", "what", "remedy"),
    [
        (replace(GOOD, load_state="not-found", similar=("wed.service",)), "does not know", "did you mean wed.service?"),
        (replace(GOOD, load_state="not-found"), "does not know", "units of users cannot be meshed"),
        (UnitFact(UnitName("db@.service"), "template"), "a template", "hostmesh enable db@NAME"),
        (replace(GOOD, load_state="masked"), "masked", "systemctl unmask web.service"),
        (replace(GOOD, alias_of="nginx.service"), "another name of nginx.service", "hostmesh enable nginx.service"),
        (replace(GOOD, unit=UnitName("web.socket")), "not a socket", "name its service"),
        (replace(GOOD, unit=UnitName("hostmeshd.service")), "part of hostmesh itself", "mesh the services"),
        (replace(GOOD, unit=UnitName("dbus.service")), "starts before hostmesh can", "leave it out"),
        (replace(GOOD, default_dependencies=False), "starts before hostmesh can", "leave it out"),
        (replace(GOOD, slice="own.slice"), "own.slice, whose limits would be lost", "take Slice= out"),
        (replace(GOOD, slice="system-web.slice"), "slice of its own", "take Slice= out"),
        (replace(GOOD, private_network=True), "PrivateNetwork=yes", "take PrivateNetwork= out"),
        (replace(GOOD, network_namespace="/run/netns/x"), "/run/netns/x", "take NetworkNamespacePath= out"),
    ],
)
def test_objection(fact: UnitFact, what: str, remedy: str) -> None:
    (found,) = objections(fact)
    assert what in found.what
    assert remedy in found.remedy


@pytest.mark.parametrize(
    "fact",
    [
        GOOD,
        replace(GOOD, slice=""),
        replace(GOOD, slice="mesh-web.slice"),
        replace(GOOD, unit=UnitName("postgresql@15-main.service"), slice="system-postgresql.slice"),
    ],
)
def test_no_objection(fact: UnitFact) -> None:
    assert objections(fact) == ()


def test_two_reasons_are_told_at_once() -> None:
    assert len(objections(replace(GOOD, private_network=True, slice="own.slice"))) == 2


def test_the_implicit_slice_of_a_template_is_escaped() -> None:
    assert implicit_slice("my-db@main") == r"system-my\x2ddb.slice"
    assert implicit_slice("web") == "system.slice"


def test_loopholes_of_root() -> None:
    root = replace(GOOD, user="")
    capabilities, cgroups = loopholes(root)
    assert capabilities.remedy.startswith("CapabilityBoundingSet=~CAP_NET_ADMIN CAP_NET_RAW")
    assert cgroups.remedy == "ProtectControlGroups=yes"
    assert loopholes(replace(root, capabilities=0, protect_control_groups=True)) == ()


def test_loopholes_of_others_are_what_they_are_given() -> None:
    assert loopholes(GOOD) == ()
    assert loopholes(replace(GOOD, ambient=1 << 12))[0].remedy == "CapabilityBoundingSet=~CAP_NET_ADMIN"
    assert loopholes(replace(GOOD, user="", dynamic_user=True)) == ()
