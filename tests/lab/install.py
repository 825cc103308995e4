"""Turns the built wheels into an installed hostmesh on lab hosts, by the very script that a user runs.

Two ways: ``install`` runs it on a running host (about ten seconds); ``hostmesh_layer`` has run it once for these wheels
and gives the layer that it wrote, so that a host boots with hostmesh in place (``Lab(layers=[hostmesh_layer()])``).
"""

import hashlib
import subprocess
import tarfile
from pathlib import Path

from tests.lab import rootfs
from tests.lab.bake import bake
from tests.lab.host import Host

_REPOSITORY = Path(__file__).resolve().parents[2]
_SHOWN = {"packaging": "packaging", "dist": "dist", "wheelhouse": "build/wheelhouse"}


class NotBuiltError(Exception):
    """There are no wheels to install."""


def sources(checkout: Path = _REPOSITORY) -> dict[str, Path]:
    """The folders that an installation takes, by the names below which it is shown them."""
    folders = {name: checkout / folder for name, folder in _SHOWN.items()}
    for package in ("hostmesh", "hostmesh_proxy"):
        if len(list(folders["dist"].glob(f"{package}-*.whl"))) != 1:
            raise NotBuiltError(f"{folders['dist']} has no wheel of {package}: make wheels")
    if not folders["wheelhouse"].is_dir():
        raise NotBuiltError(f"{folders['wheelhouse']} has no dependencies: make wheels")
    return folders


def command(base: str) -> list[str]:
    """The line that installs from these folders, shown below ``base``."""
    return [f"{base}/packaging/install", "--wheels", f"{base}/dist", "--wheels", f"{base}/wheelhouse"]


def hostmesh_layer(checkout: Path = _REPOSITORY) -> Path:
    """The layer with hostmesh installed from the wheels of a checkout as they are now."""
    folders = sources(checkout)
    digest = hashlib.sha256()
    for folder in folders.values():
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    debian = rootfs.debian()
    key = rootfs.recipe_hash(debian.name, digest.hexdigest())
    return rootfs.ensure_layer("hostmesh", key, lambda folder: bake([debian], folders, command("/mnt"), folder))


def install(host: Host) -> None:
    """Copy the wheels to a running host and run the installation there, as its administrator would."""
    base = "/var/tmp/hostmesh-wheels"
    host.exec(["mkdir", "-p", base]).must()
    receiver = subprocess.Popen(host.enter_argv(["/bin/tar", "-x", "-C", base]), stdin=subprocess.PIPE)
    assert receiver.stdin is not None
    with receiver, tarfile.open(fileobj=receiver.stdin, mode="w|") as archive:
        for name, folder in sources().items():
            archive.add(folder, arcname=name)
    if receiver.returncode:
        raise RuntimeError(f"{host.name}: tar ended with {receiver.returncode}")
    host.exec(command(base), timeout=120).must()
    host.exec(["rm", "-r", base]).must()
