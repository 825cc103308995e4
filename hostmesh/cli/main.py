"""Turns the words on the command line into one verb's module: `hostmesh VERB …`.

Only the verb that was asked for is imported, so that the answer to a small question comes at once.
"""

import argparse
import sys
from importlib import import_module

from hostmesh.errors import HostmeshError, PolicyError

VERBS = {
    "check": ("check", "check policy files; needs neither root nor a daemon"),
    "enable": ("enable", "mesh a unit: policy in audit mode, drop-in, and the mesh itself if there is none"),
    "enforce": ("enforce", "end a unit's audit mode: from now on policy decides"),
    "disable": ("disable", "take a unit out of the mesh; works with everything of ours dead"),
    "status": ("status", "what is in force on this host, and what is not"),
    "diff": ("diff", "what would change"),
    "explain": ("explain", "may CALLER call DESTINATION, and by which line of which file"),
    "tap": ("tap", "the requests of a unit as they come, with what became of them and by which rule"),
    "top": ("top", "units by what they do just now: requests, errors, times, bytes"),
    "replay": ("replay", "judge recorded requests by policies that are not in force yet: what would be otherwise"),
    "certs": ("certs", "the identities in force on this host"),
    "doctor": ("doctor", "what on this host gets in the mesh's way, and what mends it"),
    "run": ("run", "run a command as a meshed unit"),
    "join": ("join", "enrol this host with a token of the controller"),
    "controller": ("controller", "set up the controller, make tokens, grant units to hosts"),
    "uninstall": ("uninstall", "take everything out of the kernel and of systemd that hostmesh put there"),
}


def main() -> int:
    """The command. Exit codes: 0 done, 1 refused or not so, 2 not understood."""
    arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(prog="hostmesh", description="A service mesh for plain Linux hosts.")
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    for name, (module, summary) in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if arguments[:1] == [name]:
            import_module(f"hostmesh.cli.{module}").configure(verb)
    chosen = parser.parse_args()
    if chosen.version:
        return _version()
    if chosen.verb is None:
        parser.print_help()
        return 2
    return _carry_out(chosen)


def _carry_out(chosen: argparse.Namespace) -> int:
    try:
        code: int = chosen.do(chosen)
        sys.stdout.flush()
    except HostmeshError as error:
        told = str(error) if isinstance(error, PolicyError) else f"hostmesh {chosen.verb}: {error}"
        print(told, file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # whoever read has enough; Python would complain of it at its end
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _version() -> int:
    from importlib.metadata import version  # noqa: PLC0415  reads files

    print(version("hostmesh"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
