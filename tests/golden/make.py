"""Turns an example policy and facts of a host into the text of everything that the plan makes of them."""

import json
from pathlib import Path
from typing import Any

import msgspec

from hostmesh.names import UnitName
from hostmesh.plan.compile import Plan, compile_plan
from hostmesh.plan.facts import HostFacts, UnitFacts
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load
from hostmesh.wire.snapshot import Service

FOLDER = Path(__file__).parent
POLICIES = FOLDER.parents[1] / "policies"
FACTS = """{
  "addresses": ["198.18.0.1", "2001:2::1"],
  "numbers": {},
  "listens": [],
  "sockets": [],
  "services": []
}
"""
"""Facts of a new example: the unit gets number 1 where ``numbers`` says nothing."""

VIPS = ("240.240.0.0/16", "fd00:240::/112")


def plan_of(example: Path) -> Plan:
    """The plan of host h1 with this policy alone."""
    facts: dict[str, Any] = json.loads((FOLDER / example.stem / "facts.json").read_text())
    policies = load({example.name: example.read_text()})
    units, numbers = {}, {}
    for policy in policies:
        numbers[policy.unit] = facts["numbers"].get(policy.unit.full, 1)
        units[policy.unit] = UnitFacts(
            policy.unit,
            active=True,
            listens=frozenset((address, port) for address, port in facts["listens"]),
            sockets=tuple(UnitName(name) for name in facts["sockets"]),
        )
    host = HostFacts("h1", tuple(facts["addresses"]), units, numbers)
    services = msgspec.convert(facts["services"], list[Service])
    return compile_plan(Settings(host="h1"), policies, host, services, (), VIPS)


def made(example: Path) -> dict[str, str]:
    """Text by name within the example's folder."""
    plan = plan_of(example)
    assert plan.table
    assert plan.snapshot
    snapshot = msgspec.json.format(msgspec.json.encode(plan.snapshot), indent=2).decode()
    dropins = {f"dropins/{path.removeprefix('/etc/systemd/system/')}": text for path, text in plan.files.items()}
    return {"ruleset.nft": plan.table.render(), "snapshot.json": snapshot + "\n", **dropins}


def there(folder: Path) -> dict[str, str]:
    """What is committed in an example's folder, but the facts."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "facts.json")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def write(folder: Path, texts: dict[str, str]) -> None:
    """Make the folder hold exactly these texts, beside its facts."""
    for name in there(folder).keys() - texts.keys():
        (folder / name).unlink()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
