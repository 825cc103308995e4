"""Turns a folder that pins Go modules into a program for test hosts: built once, kept beside the lab's layers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab import rootfs


class NoProgramError(Exception):
    """Nothing here can build it, with the reason."""


def program(source: Path, package: str) -> Path:
    """The program of a package, as the module in ``source`` pins it."""
    name = package.rpartition("/")[2]
    files = sorted(path for path in source.iterdir() if path.is_file())
    key = rootfs.recipe_hash(package, *(path.read_text() for path in files))
    return rootfs.ensure_layer(name, key, lambda folder: _build(source, package, folder / name)) / name


def _build(source: Path, package: str, to: Path) -> None:
    if shutil.which("go") is None:
        raise NoProgramError(f"no go here: install Go 1.26 or newer, for {to.name}")
    print(f"lab: building {to.name} (once)", file=sys.stderr, flush=True)
    command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(to), package]
    # A toolchain is not fetched, and nothing is linked against this machine's C library.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoProgramError(f"go build ended with {done.returncode}\n{done.stderr}")
