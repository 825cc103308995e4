"""Turns a host into all that gets in the mesh's way there, each with what mends it."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from hostmesh.cli import host, show
from hostmesh.errors import HostmeshError
from hostmesh.plan.surroundings import Trouble
from hostmesh.policy.settings import Settings


class OnlyRootSees(HostmeshError):
    """nftables and other processes' sockets are shown to root alone."""


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh doctor`."""
    show.add_json(parser)
    parser.set_defaults(do=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """Exit code 1 with any problem; risks alone, where nothing is broken yet, are told with 0."""
    if os.geteuid() != 0:
        raise OnlyRootSees("doctor looks at what only root is shown", "sudo hostmesh doctor")
    known = host.settings()
    from hostmesh.observe.surroundings import look  # noqa: PLC0415  D-Bus and nftables take their time to load
    from hostmesh.plan.doctor import judge  # noqa: PLC0415

    troubles = (*judge(known, look(known, _running(known))), *_units(known))
    if arguments.json:
        show.print_json({"ok": not _problems(troubles), "findings": [asdict(trouble) for trouble in troubles]})
    else:
        for trouble in troubles:
            print(f"{trouble.level}: {trouble.where}: {trouble.what} [{trouble.code}]\n    {trouble.remedy}")
        print(f"{_problems(troubles)} problems, {len(troubles) - _problems(troubles)} risks")
    return 1 if _problems(troubles) else 0


def _problems(troubles: tuple[Trouble, ...]) -> int:
    return sum(trouble.level == "problem" for trouble in troubles)


def _running(known: Settings) -> str:
    from hostmesh.cli.agent_link import AgentAway, ask  # noqa: PLC0415
    from hostmesh.wire.agent_control import GetStatus, Status  # noqa: PLC0415

    try:
        return ask(known, GetStatus(1), Status).version
    except AgentAway:
        return ""  # a host without an agent can be looked at too


def _units(known: Settings) -> tuple[Trouble, ...]:
    """The meshed units: can they be meshed at all, and could they step round it?"""
    from hostmesh.cli import admission, unit_facts  # noqa: PLC0415
    from hostmesh.policy.validate import load  # noqa: PLC0415

    folder = Path(known.paths.policies)
    policies = load(host.policy_texts([folder])) if folder.is_dir() else ()
    found: list[Trouble] = []
    for unit, fact in unit_facts.read(tuple(policy.unit for policy in policies)).items():
        said = [("problem", remark) for remark in admission.objections(fact)] if fact.load_state != "not-found" else []
        said += [("risk", remark) for remark in admission.loopholes(fact)]
        found += [Trouble("unit", level, unit.full, remark.what, remark.remedy) for level, remark in said]
    return tuple(found)
