"""Turns a command that changes a tree into a layer: runs it over other layers, keeps what it wrote.

Run by ``bake`` as ``python -S -m tests.lab.bake SPEC`` in namespaces of its own, without a network: only a process that
may end can leave its mount namespace behind.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from tests.lab import keeper
from tests.lab import namespaces as ns

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
}


@dataclass(frozen=True)
class BakeSpec:
    """``layers`` lowest first; ``shown``: folders of this machine under names below the tree's /mnt, read-only."""

    layers: list[str]
    shown: dict[str, str]
    argv: list[str]
    destination: str


class BakeError(Exception):
    """The command failed; its output."""


def bake(layers: list[Path], shown: dict[str, Path], argv: list[str], destination: Path) -> None:
    """Run ``argv`` over ``layers`` and put what it wrote into the empty folder ``destination``."""
    spec = BakeSpec([str(x) for x in layers], {k: str(v) for k, v in shown.items()}, argv, str(destination))
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tests.lab.bake", json.dumps(asdict(spec))],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BakeError(f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}")


def main() -> int:
    """Do what the spec says; the exit status is the command's."""
    spec = BakeSpec(**json.loads(sys.argv[1]))
    ns.unshare(ns.CLONE_NEWNS)
    ns.mount("", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    disk = Path(tempfile.mkdtemp(prefix="hmlab-bake-"))
    try:
        keeper.make_disk(disk)
        builder = os.fork()
        if builder == 0:
            _builder(spec, disk)
        code = _wait(builder)
        if code == 0:
            subprocess.run(["cp", "-a", f"{disk}/upper/.", spec.destination], check=True)
    finally:
        ns.unmount(disk)
        disk.rmdir()
    return abs(code)


def _wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _builder(spec: BakeSpec, disk: Path) -> NoReturn:
    """Holds the namespaces: once the first process of a pid namespace has ended, nobody can fork into it."""
    try:
        ns.unshare(ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS)
        child = os.fork()
        if child == 0:
            _inside(spec, disk)
        os._exit(abs(_wait(child)))
    except OSError:
        traceback.print_exc()
    finally:
        os._exit(1)


def _inside(spec: BakeSpec, disk: Path) -> NoReturn:
    """The first process of the tree's pid namespace; never returns."""
    try:
        ns.die_with_parent(0, signal.SIGKILL)
        root = disk / "root"
        ns.unshare(ns.CLONE_NEWNS)
        keeper.mount_layers(spec.layers, disk, root)
        keeper.mount_for_building(root)
        for name, source in spec.shown.items():
            (root / "mnt" / name).mkdir()
            ns.bind(source, root / "mnt" / name, read_only=True)
        ns.pivot_into(root)
        done = subprocess.run(spec.argv, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, check=False)
        os._exit(abs(done.returncode))
    except OSError:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
