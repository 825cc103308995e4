"""Turns a recipe into a Debian 12 root file system, kept in a cache outside the repository.

A layer is a folder named after the hash of its recipe; a host's root is an overlay over layers, so layers are
never written to once made. The mirror comes from this machine's own apt configuration, and apt runs outside
the tree, so proxies and certificates of this machine serve here and leave no trace in the layer.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

RELEASE = "bookworm"

SYSTEM = (
    "systemd", "systemd-sysv", "dbus", "libnss-systemd", "procps", "iproute2", "iputils-ping", "nftables",
    "libnftables1", "ca-certificates", "curl", "netcat-openbsd", "openssh-server", "python3", "python3-venv",
    "openssl",
)  # fmt: skip
STOCK = (
    "nginx-light", "redis-server", "redis-tools", "postgresql-15", "postgresql-client-15", "wrk", "haproxy",
    "python3-httpx",  # for the demo's orders
    "nghttp2-client", "nghttp2-server", "python3-websockets",
)  # fmt: skip

# Runs in the tree once everything is installed. A host starts what a test or a person starts, nothing else;
# what would touch the machine's own kernel (debugfs, binfmt, hugepages) is masked.
FINISH = """
systemctl disable nginx redis-server postgresql haproxy ssh nftables e2scrub_reap.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
systemctl mask modprobe@.service console-getty.service getty@.service dev-hugepages.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    proc-sys-fs-binfmt_misc.automount systemd-binfmt.service systemd-modules-load.service \
    systemd-update-utmp.service systemd-networkd-wait-online.service
systemctl set-default multi-user.target
rm -f /etc/hostname /etc/resolv.conf
printf '%s: files systemd\\n' passwd group shadow > /etc/nsswitch.conf
printf 'hosts: files dns\\nservices: files\\nprotocols: files\\n' \
    >> /etc/nsswitch.conf
mkdir -p /etc/systemd/system/systemd-sysctl.service.d
printf '[Unit]\\nConditionPathIsReadWrite=\\n' > /etc/systemd/system/systemd-sysctl.service.d/lab.conf
"""


class RootfsError(Exception):
    """A layer that cannot be made here, with the remedy."""


def cache_folder() -> Path:
    """Where layers live; ``HOSTMESH_LAB_CACHE`` moves it."""
    return Path(os.environ.get("HOSTMESH_LAB_CACHE", "/var/cache/hostmesh-lab"))


def recipe_hash(*parts: str) -> str:
    """The name of what these parts make."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def ensure_layer(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The layer ``kind-key``: from the cache, else made by ``make(folder)``; safe for several labs at once.

    Older layers of the same kind go, unless a lab still uses them (each holds a shared lock on its layers'
    ``.lock``).
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / f"{kind}-{key}"
    with _locked(cache / f"{kind}.making"):
        if not wanted.exists():
            started = cache / f"{kind}-{key}.part"
            if started.exists():
                shutil.rmtree(started)
            started.mkdir(mode=0o755)
            try:
                make(started)
            except BaseException:
                shutil.rmtree(started)
                raise
            started.rename(wanted)
            _drop_unused(cache, kind, keep=wanted)
    return wanted


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def in_use(layers: list[Path]) -> Iterator[None]:
    """Keep ``layers`` from being dropped."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            lock = stack.enter_context(layer.with_name(layer.name + ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _drop_unused(cache: Path, kind: str, keep: Path) -> None:
    for layer in cache.glob(f"{kind}-*"):
        if layer == keep or not layer.is_dir() or layer.suffix == ".part":
            continue
        lock_path = layer.with_name(layer.name + ".lock")
        with lock_path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(layer)
            lock_path.unlink()


def debian_sources() -> list[str]:
    """This machine's own Debian 12 mirrors as sources.list(5) lines."""
    targets = _output(
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
        "Created-By: Packages",
    )
    lines = []
    for target in targets.splitlines():
        origin, uri, release, component = target.split("|")
        if origin == "Debian" and release.split("-")[0] == RELEASE and component == "main":
            lines.append(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {release} {component}")
    if not lines:
        raise RootfsError(
            f"apt knows no Debian {RELEASE} here: name a mirror in /etc/apt/sources.list, then apt-get update"
        )
    return list(dict.fromkeys(lines))


def _apt_options() -> list[str]:
    """Proxies, certificates and date checks of this machine's apt."""
    options = ['Acquire::Languages "none"', 'APT::Install-Recommends "false"']
    for line in _output("apt-config", "dump").splitlines():
        setting = line.rstrip(";")
        name, _, value = setting.partition(" ")
        wanted = name.split("::")[-1].lower() in {
            "proxy",
            "cainfo",
            "check-valid-until",
            "check-date",
            "verify-peer",
        }
        if name.startswith("Acquire::") and wanted and value != '""':
            options.append(setting)
    return options


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def bootstrap(folder: Path, packages: Sequence[str], finish: str) -> None:
    """mmdebstrap into ``folder``, then ``finish`` by a shell in the tree; 45 s and 500 MB for a lab host."""
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"]
    argv += [f"--aptopt={option}" for option in _apt_options()]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")]
    argv += [f'--customize-hook=chroot "$1" sh -eu -c {_quoted(finish)}']
    argv += [
        '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/apt/sources.list"',
        RELEASE,
        str(folder),
        "-",
    ]
    log = folder.with_name(folder.name + ".log")
    with log.open("w") as output:
        done = subprocess.run(
            argv, input="\n".join(debian_sources()), text=True, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RootfsError(f"mmdebstrap ended with {done.returncode}; the whole log: {log}\n{tail}")
    log.unlink()


def _make_debian(folder: Path) -> None:
    print("lab: making the Debian 12 root file system (about a minute, once)", file=sys.stderr, flush=True)
    bootstrap(folder, SYSTEM + STOCK, FINISH)


def _quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


def debian() -> Path:
    """The layer with Debian 12, systemd as init, and the stock services of the demo."""
    recipe = recipe_hash(RELEASE, *SYSTEM, *STOCK, FINISH)
    return ensure_layer("debian", recipe, _make_debian)
