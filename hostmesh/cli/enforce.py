"""Turns a policy in audit mode into one that is enforced; the rest of its text stays as a person wrote it."""

import argparse

from hostmesh.apply.files import Files
from hostmesh.cli import drafts, host
from hostmesh.cli.agent_link import AgentAway, ask
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load
from hostmesh.wire.agent_control import GetPlan, GetStatus, PlanInForce, Status


class Undecided(HostmeshError):
    """There are callers that enforcing would refuse, and nobody has said what shall become of them."""


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh enforce UNIT [--allow-seen | --refuse-seen]`."""
    parser.add_argument("unit", metavar="UNIT")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--allow-seen", action="store_true", help="write a rule for every caller seen that no rule names")
    seen.add_argument("--refuse-seen", action="store_true", help="enforce the rules as they are, whoever was seen")
    parser.set_defaults(do=enforce)


def enforce(arguments: argparse.Namespace) -> int:
    """Callers seen in audit mode are neither let in nor cut off by accident: with some, it takes a decision."""
    host.must_be_root("enforce")
    known, unit = host.settings(), UnitName.parse(arguments.unit)
    path = host.policy_path(known, unit.full)
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise HostmeshError(f"{unit} has no policy: {path} is not there", f"hostmesh enable {unit}") from error
    changed = drafts.enforced(str(path), text)
    rules = "" if arguments.refuse_seen else _rules_for_seen(known, unit)
    if rules and not arguments.allow_seen:
        hint = f"hostmesh enforce {unit} --allow-seen writes these rules; --refuse-seen enforces without them"
        raise Undecided(f"enforcing would refuse callers that were seen:\n\n{rules}", hint)
    if rules:
        changed = drafts.enforced(str(path), text, rules)
    load({**host.policy_texts([path.parent]), str(path): changed})
    Files().write(str(path), changed)
    print(f"wrote   {path}: enforced{', with rules for the callers seen' if rules else ''}")
    return 0


def _rules_for_seen(known: Settings, unit: UnitName) -> str:
    try:
        status = ask(known, GetStatus(1), Status)
        own = ask(known, GetPlan(2), PlanInForce).snapshot.addresses
    except AgentAway as error:
        what = "nobody can tell which callers this would refuse: no agent answers"
        raise Undecided(what, f"systemctl start hostmeshd.service; or hostmesh enforce {unit} --refuse-seen") from error
    seen = next((row.suggestions for row in status.units if row.unit == unit.full), [])
    return drafts.suggested_rules(seen, own)
