"""Turns policy files into "all right" or into everything that is wrong with them."""

import argparse
from dataclasses import asdict
from pathlib import Path

from hostmesh.cli import host, show
from hostmesh.errors import Diagnostic, PolicyError
from hostmesh.policy.model import Mode, Policy
from hostmesh.policy.validate import load


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh check [--units] [PATH…]`."""
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="files, or folders of them; default: this host's policies"
    )
    looks = "also look at the units themselves: can they be meshed, can they step round it"
    parser.add_argument("--units", action="store_true", help=looks)
    show.add_json(parser)
    parser.set_defaults(do=check)


def check(arguments: argparse.Namespace) -> int:
    """Exit code 1 with all errors of all files; the files given are checked as the policies of one host."""
    known = host.settings()
    try:
        texts = host.policy_texts(arguments.paths or [Path(known.paths.policies)])
        policies = load(texts)
    except PolicyError as error:
        if arguments.json:
            show.print_json({"ok": False, "findings": [_finding(d) for d in error.diagnostics]})
            return 1
        raise
    notes = _units(policies) if arguments.units else {}
    if arguments.json:
        show.print_json({"ok": True, "policies": [_summary(policy) for policy in policies], "units": notes})
        return 0
    if policies:
        print(show.table(("UNIT", "SERVICE", "PORTS", "MODE", "FILE"), [_row(policy) for policy in policies]))
    for unit, remarks in notes.items():
        for remark in remarks:
            print(f"\n{unit}: {remark}")
    print(f"{len(policies)} {'policy' if len(policies) == 1 else 'policies'}, no errors")
    return 0


def _units(policies: tuple[Policy, ...]) -> dict[str, list[str]]:
    from hostmesh.cli import admission, unit_facts  # noqa: PLC0415  only with --units: D-Bus

    facts = unit_facts.read(tuple(policy.unit for policy in policies))
    return {
        unit.full: [str(remark) for remark in (*admission.objections(fact), *admission.loopholes(fact))]
        for unit, fact in facts.items()
    }


def _finding(diagnostic: Diagnostic) -> dict[str, object]:
    told = asdict(diagnostic)
    return {**told.pop("place"), **told}


def _summary(policy: Policy) -> dict[str, object]:
    return {
        "unit": policy.unit.full,
        "service": policy.service,
        "ports": {str(port.number): port.protocol.value for port in policy.ports},
        "mode": policy.mode.value,
        "file": policy.place.file,
    }


def _row(policy: Policy) -> tuple[str, ...]:
    ports = " ".join(f"{port.number}/{port.protocol}" for port in policy.ports) or "-"
    mode = "audit: nothing is refused" if policy.mode is Mode.AUDIT else policy.mode.value
    return (policy.unit.full, policy.service, ports, mode, policy.place.file)
