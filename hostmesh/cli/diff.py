"""Turns changed policy files into the steps that they would cause, without taking one."""

import argparse
from pathlib import Path

from hostmesh.cli import host, show
from hostmesh.cli.agent_link import ask
from hostmesh.errors import Diagnostic, Place, PolicyError
from hostmesh.wire.agent_control import Diff, GetDiff


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh diff [PATH…]`."""
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="policies to lay over those in force; default: none"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="UNIT", help="as if this policy were not there"
    )
    show.add_json(parser)
    parser.set_defaults(do=diff)


def diff(arguments: argparse.Namespace) -> int:
    """Exit code 1 when the policies would be refused."""
    over = {Path(path).name: text for path, text in host.policy_texts(arguments.paths).items()}
    over.update({f"{unit}{host.SUFFIX}": "" for unit in arguments.without})
    answer = ask(host.settings(), GetDiff(1, over), Diff)
    if arguments.json:
        show.print_json(answer)
        return 1 if answer.findings else 0
    if answer.findings:
        raise PolicyError(
            tuple(Diagnostic(f.code, Place(f.file, f.line, f.column), f.message, f.hint) for f in answer.findings)
        )
    for name, text in answer.steps:
        print(name)
        print("".join(f"    {line}\n" for line in text.splitlines()), end="")
    print(f"{len(answer.steps)} steps" if answer.steps else "nothing would change")
    return 0
