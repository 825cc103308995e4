"""Shows what units do just now: reads the counters once a second, prints what happened since."""

import argparse
import shutil
import sys
import time
from dataclasses import asdict

from hostmesh.cli import host, show
from hostmesh.cli.agent_link import ask
from hostmesh.cli.top_rates import SORTS, Rates, rates, table
from hostmesh.wire.agent_control import Counts, GetCounts

_SECONDS = 1.0
_TOP_LEFT, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"  # ECMA-48


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh top [--sort COLUMN] [--once]`."""
    parser.add_argument("--sort", choices=SORTS, default="requests", metavar="COLUMN", help=f"{', '.join(SORTS)}")
    parser.add_argument("--once", action="store_true", help="one second, one table")
    show.add_json(parser)
    parser.set_defaults(do=top)


def top(arguments: argparse.Namespace) -> int:
    """Ctrl-C ends it well. Into a pipe it prints one table after the other; as JSON one line a second."""
    known = host.settings()
    before = ask(known, GetCounts(1), Counts)
    try:
        while True:
            time.sleep(_SECONDS)
            after = ask(known, GetCounts(1), Counts)
            found = sorted(rates(before, after, int(time.time())), key=SORTS[arguments.sort])
            _print(after, found, arguments)
            if arguments.once:
                return 0
            before = after
    except KeyboardInterrupt:
        return 0


def _print(counts: Counts, found: list[Rates], arguments: argparse.Namespace) -> None:
    if arguments.json:
        units = [asdict(one) for one in found]
        show.print_json_line({"connections": counts.connections, "breakers": counts.breakers, "units": units})
    elif sys.stdout.isatty():
        size = shutil.get_terminal_size()
        lines = [line[: size.columns] for line in _head(counts)] + table(found, size.columns).splitlines()
        shown = f"{_CLEAR_LINE}\n".join(lines[: size.lines - 1])
        print(f"{_TOP_LEFT}{shown}{_CLEAR_LINE}\n{_CLEAR_BELOW}", end="")
    else:
        print("\n".join(_head(counts)), table(found, None), sep="\n", end="\n\n" if not arguments.once else "\n")
    sys.stdout.flush()


def _head(counts: Counts) -> list[str]:
    breakers = f", breakers open: {', '.join(counts.breakers)}" if counts.breakers else ", no breaker open"
    return [f"{time.strftime('%H:%M:%S')}  {counts.connections} connections open{breakers}"]
