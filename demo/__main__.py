"""Turns two empty hosts into a mesh before your eyes, and prints what was tried and seen.

python -m demo [--keep]        (make demo, make demo KEEP=1)
"""

import argparse
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable

from tests.mesh import removal, shows, survival
from tests.mesh.world import World, world

Show = Callable[[World], str]
ROWS: tuple[Show, ...] = (
    shows.allowed,
    shows.same_host,
    shows.nothing_readable,
    shows.readable_without,
    shows.wire_refuses_strangers,
    shows.stock_clients,
    shows.big_download,
    shows.refused_by_policy_http,
    shows.refused_by_policy_tcp,
    shows.refused_plaintext,
    shows.vip_refused_to_unmeshed,
    shows.denial_counted,
    shows.denial_beside_own_lines,
    shows.retried,
    shows.client_addresses,
    shows.impostor,
    shows.scraper,
    shows.policy_change,
    shows.wrong_policy,
    survival.control_dies,
    survival.proxy_dies,
)
STEP_IN = """
The hosts are up. In another terminal, in this folder:

    .venv/bin/python -m tests.lab exec h1 -- hostmesh status       as the administrator of h1
    .venv/bin/python -m tests.lab shell h2                          a shell on h2

Ctrl-C here takes everything down."""


def main() -> int:
    """Build the world, try every row, print the table; 0 if all was as it must be."""
    parser = argparse.ArgumentParser(prog="demo", description="the main job, shown on real systemd hosts")
    parser.add_argument("--keep", action="store_true", help="leave the hosts up until Ctrl-C")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background
    started = time.monotonic()

    def tell(what: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {what}", flush=True)

    try:
        with world(tell, open_house=keep) as built:
            rows = [attempt(built, show, tell) for show in ROWS]
            if keep:
                print(table(rows) + STEP_IN, flush=True)
                signal.pause()
            else:
                rows.append(attempt(built, removal.nothing_left, tell))
        print(table(rows), flush=True)
    except KeyboardInterrupt:
        print("\ntaken down", flush=True)
        return 130
    good = sum(ok for ok, _, _ in rows)
    print(f"{good} of {len(rows)} as they must be, {time.monotonic() - started:.0f} s")
    return 0 if good == len(rows) else 1


def attempt(built: World, show: Show, tell: Callable[[str], None]) -> tuple[bool, str, str]:
    """One row: did it hold, what was tried, what was seen."""
    tried = (show.__doc__ or show.__name__).strip()
    tell(tried)
    try:
        return True, tried, show(built)
    except AssertionError as error:
        return False, tried, f"{type(error).__name__}: {error}"


def table(rows: list[tuple[bool, str, str]]) -> str:
    """The rows as text, folded to the terminal's width."""
    width = max(100, shutil.get_terminal_size((140, 25)).columns)
    left = 48
    lines = ["", f"{'':5}{'what was tried':{left}}  what was seen", "-" * width]
    for ok, tried, seen in rows:
        tries = textwrap.wrap(tried, left, break_on_hyphens=False)
        seens = textwrap.wrap(seen, width - left - 7, break_on_hyphens=False) or [""]
        for index in range(max(len(tries), len(seens))):
            mark = ("ok" if ok else "FAIL") if index == 0 else ""
            one = tries[index] if index < len(tries) else ""
            two = seens[index] if index < len(seens) else ""
            lines.append(f"{mark:5}{one:{left}}  {two}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
