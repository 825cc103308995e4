"""Turns settings, policies, facts, services and trust into the Plan of one host: pure, so a plan is a golden file."""

from collections.abc import Sequence
from dataclasses import dataclass

from hostmesh.names import UnitName
from hostmesh.plan.dropins import dropin_files
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.footprint import SYSCTLS
from hostmesh.plan.redirect import ruleset
from hostmesh.plan.routing import PolicyRule, Route, policy_rules, routes
from hostmesh.plan.ruleset import Table
from hostmesh.plan.snapshot import snapshot
from hostmesh.policy.model import Policy
from hostmesh.policy.settings import Settings
from hostmesh.wire.snapshot import Revoked, Service, Snapshot


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a host shall have. files: text by absolute path (drop-ins). slices: those that must run. table and
    snapshot are None in the plan of a host that is to have nothing left."""

    table: Table | None
    snapshot: Snapshot | None
    sysctls: dict[str, str]
    rules: tuple[PolicyRule, ...]
    routes: tuple[Route, ...]
    slices: tuple[str, ...]
    files: dict[str, str]


def compile_plan(  # noqa: PLR0917 the order of the flow
    settings: Settings,
    policies: Sequence[Policy],
    facts: HostFacts,
    services: Sequence[Service],
    trust_bundle: Sequence[str],
    vip_ranges: Sequence[str] = (),
    revoked: Sequence[Revoked] = (),
) -> Plan:
    """The plan of this host. trust_bundle: base64 DER. vip_ranges (CIDR networks), revoked: as the controller says.

    A policy whose unit has no number in ``facts.numbers`` yet is left out of ruleset and snapshot; its files are not.
    """
    ordered = tuple(sorted(policies, key=lambda policy: policy.unit))
    numbered = tuple(policy for policy in ordered if policy.unit in facts.numbers)
    return Plan(
        table=ruleset(settings, numbered, facts, vip_ranges),
        snapshot=snapshot(settings, numbered, facts, services, trust_bundle, revoked),
        sysctls=dict(SYSCTLS),
        rules=policy_rules(settings),
        routes=routes(settings, facts.addresses, vip_ranges),
        slices=tuple(policy.unit.slice for policy in numbered),
        files=dropin_files(settings, ordered, facts),
    )


def empty_plan() -> Plan:
    """The plan of a host that is to have nothing of hostmesh left: for removal."""
    return Plan(None, None, {}, (), (), (), {})


def units_of(policies: Sequence[Policy]) -> tuple[UnitName, ...]:
    """The units that the policies mesh, in order: who needs a number."""
    return tuple(sorted({policy.unit for policy in policies}))
