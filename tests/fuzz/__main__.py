"""``make fuzz``: every target for so many seconds; a table, and an exit code that says whether something was found."""

import argparse
import sys

from tests.fuzz.run import TARGETS, build, run


def main() -> int:
    """Parse, build, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="which; all where none is named")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    asked = parser.parse_args()
    names = [target.name for target in TARGETS]
    if wrong := set(asked.target) - set(names):
        parser.error(f"no target {', '.join(sorted(wrong))}; there are: {', '.join(names)}")
    wanted = [target for target in TARGETS if not asked.target or target.name in asked.target]
    seconds, found = 0.0, 0
    for outcome in run(wanted, build(), asked.seconds, asked.jobs):
        print(outcome, flush=True)
        seconds += outcome.cpu_seconds
        found += len(outcome.findings)
    print(f"{seconds / 3600:.2f} CPU hours, {found} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
