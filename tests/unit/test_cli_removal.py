"""What is taken out of the ruleset when a unit leaves and no agent is there to do it."""

from hostmesh.cli.removal import without
from hostmesh.names import UnitName
from hostmesh.plan.elements import TableState
from hostmesh.plan.ruleset import Element

WEB, DB = "/etc/hostmesh/policies/web.service.toml", "/etc/hostmesh/policies/db.service.toml"


def state(**sets: tuple[Element, ...]) -> TableState:
    return TableState(structure="", rules={}, types={}, sets=sets)


def test_only_the_units_own_elements_go() -> None:
    there = state(
        units=(
            Element('"mesh.slice/mesh-web.slice"', "0x01000001", WEB),
            Element('"mesh.slice/mesh-db.slice"', "0x01000002", DB),
        ),
        plaintext4=(
            Element("198.18.0.9 . 80", comment=f"{WEB}:12"),
            Element("198.18.0.9 . 81", comment=f"{DB}:12"),
            Element("198.18.0.9 . 82", comment="/x/other-web.service.toml:3"),
        ),
        vips4=(Element("240.240.0.0/16", comment="addresses of services"),),
    )
    assert without(there, UnitName("web.service")) == (
        "delete element inet hostmesh plaintext4 { 198.18.0.9 . 80 }\n"
        'delete element inet hostmesh units { "mesh.slice/mesh-web.slice" }\n'
    )


def test_a_unit_that_has_nothing_there_changes_nothing() -> None:
    assert without(state(units=(Element('"mesh.slice/mesh-db.slice"', "0x1", DB),)), UnitName("web.service")) == ""


def test_an_element_whose_cgroup_is_gone_is_flushed_and_the_others_put_back() -> None:
    there = state(
        units=(Element('"4711"', "0x01000001", WEB), Element('"mesh.slice/mesh-db.slice"', "0x01000002", DB)),
        meshed=(Element('"4711"', comment=WEB),),
    )
    assert without(there, UnitName("web.service")) == (
        "flush set inet hostmesh meshed\n"
        "flush map inet hostmesh units\n"
        f'add element inet hostmesh units {{ "mesh.slice/mesh-db.slice" comment "{DB}" : 0x01000002 }}\n'
    )
