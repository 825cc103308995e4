"""Shows the requests of units as they come: asks the agent, prints a line for each, until it is told to end."""

import argparse
import re
import sys

from hostmesh.cli import host, show
from hostmesh.cli.agent_link import follow
from hostmesh.cli.tap_lines import line
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.wire.agent_control import Tap, Wanted

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s)")
_MICROS = {"us": 1, "ms": 1_000, "s": 1_000_000}


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh tap UNIT…` and what narrows it."""
    parser.add_argument("units", nargs="+", metavar="UNIT", help="units of this host")
    of_many = (
        ("--from", "callers", "CALLER", "as policies name it, or its address; * stands for anything"),
        ("--to", "callees", "SERVICE", "the service called"),
        ("--method", "methods", "METHOD", ""),
        ("--path", "paths", "PATH", "with *, as in policies"),
        ("--status", "statuses", "STATUS", "503, or 5xx"),
    )
    for option, name, word, what in of_many:
        told = f"{what}; may be repeated" if what else "may be repeated"
        parser.add_argument(option, dest=name, action="append", default=[], metavar=word, help=told)
    parser.add_argument("--denied", action="store_true", help="what a policy refused, or would but for audit")
    parser.add_argument("--errors", action="store_true", help="what failed; with --denied: both")
    parser.add_argument("--slow", default="0s", metavar="DURATION", help="what took so long at least: 100ms, 2s")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after so many; default: with Ctrl-C")
    show.add_json(parser)
    parser.set_defaults(do=tap)


def tap(arguments: argparse.Namespace) -> int:
    """Ctrl-C ends it well. Exit code 1 when the agent goes away."""
    units = [UnitName.parse(unit).full for unit in arguments.units]
    shown = 0
    try:
        batches = follow(host.settings(), Tap(1, units, _wanted(arguments)))
        next(batches)
        print(f"looking at {', '.join(units)}; Ctrl-C ends it", file=sys.stderr, flush=True)
        for batch in batches:
            if batch.lost:
                _tell_lost(batch.lost, is_json=arguments.json)
            for event in batch.events:
                show.print_json_line(event) if arguments.json else print(line(event))
                shown += 1
                if shown == arguments.count:
                    return 0
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 0
    return 0


def _wanted(arguments: argparse.Namespace) -> Wanted:
    slow = _DURATION.fullmatch(arguments.slow)
    if not slow:
        raise HostmeshError(f"{arguments.slow!r} is no duration", "for example: 100ms, 2s")
    for status in arguments.statuses:
        if not re.fullmatch(r"[1-5][0-9x]{2}", status):
            raise HostmeshError(f"{status!r} is no status", "for example: 503, 5xx")
    return Wanted(
        callers=arguments.callers,
        callees=arguments.callees,
        methods=arguments.methods,
        paths=arguments.paths,
        statuses=arguments.statuses,
        slow_us=int(float(slow[1]) * _MICROS[slow[2]]),
        failed=arguments.errors,
        denied=arguments.denied,
    )


def _tell_lost(lost: int, *, is_json: bool) -> None:
    if is_json:
        show.print_json_line({"lost": lost})
    else:
        print(
            f"{lost} records are lost: more came than could be shown (narrow it: --path, --status, …)", file=sys.stderr
        )
