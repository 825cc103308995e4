"""Turns a terminal into a hand inside the lab: ``python -m tests.lab VERB``, ``--help`` lists the verbs."""

import argparse
import fcntl
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypedDict

from tests.lab import collector, rootfs
from tests.lab.host import ENVIRONMENT, Host, new_unit_name, unit_argv
from tests.lab.install import hostmesh_layer
from tests.lab.lab import STATE, Lab, LabError

_HERE = ".venv/bin/python -m tests.lab"


class _Told(TypedDict):
    """What a lab writes of itself."""

    open: bool
    hosts: dict[str, tuple[int, int, str]]


def main() -> int:
    """Parse, do, say."""
    parser = argparse.ArgumentParser(prog=_HERE, description="Real systemd hosts in namespaces, to step into.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    up = verbs.add_parser("up", help="boot hosts and keep them until Ctrl-C")
    up.add_argument("hosts", nargs="*", default=["h1", "h2"], metavar="HOST", help="names (h1 h2)")
    up.add_argument("--hostmesh", action="store_true", help="with hostmesh installed, from the wheels of dist/")
    up.set_defaults(do=_up)
    made = verbs.add_parser("rootfs", help="make the root file system, if it isn't there")
    made.set_defaults(do=_rootfs)
    built = verbs.add_parser("collector", help="build the OpenTelemetry Collector, if it isn't there")
    built.set_defaults(do=_collector)
    for name, do, text in (
        ("exec", _exec, "run a command as root, in no unit's cgroup"),
        ("run", _run, "run a command as a transient unit"),
        ("shell", _shell, "a shell on a host"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--lab", help="which lab, when several run")
        verb.add_argument("host")
        if name == "run":
            verb.add_argument("--user", help="as this user")
            verb.add_argument("--slice", help="in this slice")
            verb.add_argument("--unit", help="under this name")
        if name != "shell":
            verb.add_argument("command", nargs="+", help="after --")
        verb.set_defaults(do=do)
    chosen = parser.parse_args()
    try:
        done: int = chosen.do(chosen)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return done


def _rootfs(_: argparse.Namespace) -> int:
    print(rootfs.debian())
    return 0


def _collector(_: argparse.Namespace) -> int:
    print(collector.binary())
    return 0


def _up(chosen: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT is ignored where a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    layers = [hostmesh_layer()] if chosen.hostmesh else []
    try:
        with Lab(chosen.hosts, layers=layers, open_house=True) as lab:
            print(invitation(list(lab.hosts.values())), flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        print("lab: all down")
    return 0


def invitation(hosts: Sequence[Host]) -> str:
    """How to step in, for a person."""
    example = hosts[0].name
    table = "\n".join(f"  {h.name}  {h.ipv4:<12} {h.ipv6}" for h in hosts)
    return (
        f"{table}\n\n"
        f"  {_HERE} shell {example}\n"
        f"  {_HERE} exec {example} -- systemctl status\n"
        f"  {_HERE} run  {example} -- ping -c 1 {hosts[-1].name}     (as a unit, with a cgroup of its own)\n\n"
        "Ctrl-C takes all down."
    )


def _exec(chosen: argparse.Namespace) -> int:
    return _replace(_find(chosen), chosen.command)


def _run(chosen: argparse.Namespace) -> int:
    unit = chosen.unit or new_unit_name()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    argv = unit_argv(chosen.command, unit=unit, user=chosen.user, slice=chosen.slice, terminal=terminal)
    return _replace(_find(chosen), argv)


def _shell(chosen: argparse.Namespace) -> int:
    return _replace(_find(chosen), ["bash", "-l"])


def _replace(host: Host, argv: Sequence[str]) -> NoReturn:
    """Become the command inside, so that its terminal, signals and exit status are the caller's."""
    inside = host.enter_argv(argv)
    env = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
    os.execvpe(inside[0], inside, env)


def _find(chosen: argparse.Namespace) -> Host:
    """The running host of that name; labs made to be stepped into go before those of a test run."""
    found: dict[str, tuple[bool, Host]] = {}
    for folder in sorted(STATE.glob("hmlab-*")):
        told = _told(folder)
        if told and chosen.host in told["hosts"]:
            index, pid, console = told["hosts"][chosen.host]
            found[folder.name] = (told["open"], Host(chosen.host, index, pid, Path(console)))
    if chosen.lab:
        found = {name: one for name, one in found.items() if name == chosen.lab}
    open_houses = {name: one for name, one in found.items() if one[0]}
    fitting = open_houses or found
    if not fitting:
        raise LabError(f"no running lab has a host {chosen.host}; make lab starts one")
    if len(fitting) > 1:
        raise LabError(f"several labs have a host {chosen.host}: say --lab {' or '.join(fitting)}")
    return next(iter(fitting.values()))[1]


def _told(folder: Path) -> _Told | None:
    """What a lab says of itself; None when it has ended or has not booted yet."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except FileNotFoundError:
        return None
    else:
        return None
    said = folder / "hosts.json"
    if not said.exists():
        return None
    told: _Told = json.loads(said.read_text())
    return told


if __name__ == "__main__":
    sys.exit(main())
