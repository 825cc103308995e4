"""Turns a host's description into a running systemd, and keeps its disk until the lab lets go.

One keeper a host, started by ``Lab`` as ``python -S -m tests.lab.keeper SPEC``; SPEC is the JSON of
``KeeperSpec``. It owns the host's disk (a tmpfs over the shared layers, in the keeper's private mount
namespace), so a host can be killed and booted again with what it wrote. Lines on stdin: ``boot`` makes the
namespaces, ``go`` lets systemd start. Lines on stdout (JSON): ``{"init": pid}`` and ``{"exit": status}``. End
of file on stdin, which is also what a lab that was killed leaves behind, ends everything: no thread and no
signal handler of the lab is needed for it.

    keeper ── holds the disk; waits for the lab's lines
      └─ stem ── has the pid, network, uts and ipc namespaces; dies with the keeper
           └─ init ── own cgroup and mount namespace; dies with the stem; becomes systemd
"""

import contextlib
import errno
import json
import os
import select
import signal
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.lab import namespaces as ns

_CLEAN_UP_SECONDS = 10.0


@dataclass(frozen=True)
class KeeperSpec:
    """What a keeper must know: layers (lowest first), folders of its own, files to write before the boot.

    Without layers nothing boots: the stem alone holds a network namespace (the lab's switch).
    """

    name: str
    layers: list[str]
    disk: str
    console: str
    cgroup: str
    files: dict[str, str]


def main() -> int:
    """Serve the lab's lines until it lets go."""
    spec = KeeperSpec(**json.loads(sys.argv[1]))
    ns.unshare(ns.CLONE_NEWNS)
    ns.mount("", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    make_disk(Path(spec.disk))
    stem = _Stem(spec)
    try:
        _serve(stem)
    finally:
        stem.end()
        remove_cgroup(Path(spec.cgroup))
    return 0


def make_disk(folder: Path) -> None:
    """A disk for one tree, in memory: what is written, overlayfs's own folder, and where the tree is seen."""
    ns.mount("hmlab", folder, "tmpfs", data="mode=755")
    for part in ("upper", "work", "root"):
        (folder / part).mkdir()


class _Stem:
    """The processes of one boot."""

    def __init__(self, spec: KeeperSpec) -> None:
        self._spec = spec
        self._pid = 0
        self._go = -1
        self.ended = -1

    def boot(self) -> int:
        """Make the namespaces; return the pid of init, which waits for ``go``."""
        report_read, report_write = os.pipe()
        go_read, self._go = os.pipe()
        keeper = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._go)
            _stem(self._spec, keeper, report_write, go_read)
        os.close(report_write)
        os.close(go_read)
        self.ended = os.pidfd_open(self._pid)
        with os.fdopen(report_read) as report:
            line = report.readline()
        if not line:
            raise ChildProcessError(f"{self._spec.name}: no init; see {self._spec.console}")
        return int(line)

    def go(self) -> None:
        """Let init become systemd."""
        os.write(self._go, b"g")
        os.close(self._go)
        self._go = -1

    def reap(self) -> int:
        """The exit status of a boot that ended."""
        _, status = os.waitpid(self._pid, 0)
        os.close(self.ended)
        self.ended, self._pid = -1, 0
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Kill the boot, if there is one; init dies by its parent-death signal, all others with init."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self.reap()


def _serve(stem: _Stem) -> None:
    pending = b""
    while True:
        waiting = [0] if stem.ended < 0 else [0, stem.ended]
        ready, _, _ = select.select(waiting, [], [])
        if stem.ended in ready:
            _say({"exit": stem.reap()})
        if 0 in ready:
            received = os.read(0, 4096)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                match line:
                    case b"boot":
                        _say({"init": stem.boot()})
                    case b"go":
                        stem.go()
                    case _:
                        raise ValueError(f"unknown order {line!r}")


def _say(message: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _stem(spec: KeeperSpec, keeper: int, report: int, go: int) -> NoReturn:
    """The stem's life; never returns."""
    status = 1
    try:
        ns.die_with_parent(keeper, signal.SIGKILL)
        ns.unshare(ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC)
        for scope in ("all", "default"):  # addresses are usable at once: no duplicate address detection
            Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")
        if not spec.layers:
            os.write(report, f"{os.getpid()}\n".encode())
            os.close(report)
            while True:
                signal.pause()
        init = os.fork()
        if init == 0:
            os.close(report)
            _init(spec, go)
        os.write(report, f"{init}\n".encode())
        os.close(report)
        _, ended = os.waitpid(init, 0)
        status = abs(os.waitstatus_to_exitcode(ended))
    except BaseException:  # noqa: BLE001 (nobody above: the console is where it can be read)
        _write_traceback(spec)
    finally:
        os._exit(status)


def _init(spec: KeeperSpec, go: int) -> NoReturn:
    """From fork to systemd; never returns."""
    try:
        ns.die_with_parent(0, signal.SIGKILL)
        Path(spec.cgroup, "cgroup.procs").write_text("0")
        ns.unshare(ns.CLONE_NEWCGROUP | ns.CLONE_NEWNS)
        root = Path(spec.disk, "root")
        mount_layers(spec.layers, Path(spec.disk), root)
        _write_files(root, spec.files)
        _mount_kernel_filesystems(root)
        _make_dev(root / "dev")
        if os.read(go, 1) != b"g":
            os._exit(1)
        _become_systemd(spec, root)
    except BaseException:  # noqa: BLE001 (nobody above: the console is where it can be read)
        _write_traceback(spec)
    finally:
        os._exit(1)


def mount_layers(layers: list[str], disk: Path, root: Path) -> None:
    """Overlay ``layers`` (lowest first) under ``disk/upper`` at ``root``."""
    lower = ":".join(reversed(layers))
    data = f"lowerdir={lower},upperdir={disk / 'upper'},workdir={disk / 'work'}"
    ns.mount("hmlab", root, "overlay", data=data)


def _write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def mount_for_building(root: Path) -> None:
    """The little that an installation needs of a running system."""
    ns.mount("proc", root / "proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    _make_dev(root / "dev")
    for folder in ("run", "tmp", "mnt", "var/tmp"):
        ns.mount("tmpfs", root / folder, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")


def _mount_kernel_filesystems(root: Path) -> None:
    """/proc, /sys, /run, /tmp as a container manager gives them: the machine's own kernel can't be set.

    Writable are /proc/sys/net (of this network namespace alone), the cgroup tree and bpffs.
    """
    quiet = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    ns.mount("proc", root / "proc", "proc", quiet)
    ns.bind(root / "proc/sys", root / "proc/sys")
    ns.bind(root / "proc/sys/net", root / "proc/sys/net")
    ns.mount("", root / "proc/sys", flags=ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | quiet)
    if (root / "proc/sysrq-trigger").exists():
        ns.bind(root / "proc/sysrq-trigger", root / "proc/sysrq-trigger", read_only=True)
    ns.mount("sysfs", root / "sys", "sysfs", quiet)
    ns.mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", quiet)
    ns.mount("bpf", root / "sys/fs/bpf", "bpf", quiet, "mode=700")
    ns.mount("", root / "sys", flags=ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | quiet)
    ns.mount("tmpfs", root / "run", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755")
    ns.mount("tmpfs", root / "tmp", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")


def _make_dev(dev: Path) -> None:
    ns.mount("tmpfs", dev, "tmpfs", ns.MS_NOSUID, "mode=755")
    os.umask(0)
    nodes = {
        "null": (1, 3),
        "zero": (1, 5),
        "full": (1, 7),
        "random": (1, 8),
        "urandom": (1, 9),
        "tty": (5, 0),
    }
    for name, (major, minor) in nodes.items():
        os.mknod(dev / name, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    (dev / "net").mkdir(0o755)
    os.mknod(dev / "net/tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
    os.umask(0o022)
    for name, target in {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
        "ptmx": "pts/ptmx",
    }.items():
        (dev / name).symlink_to(target)
    (dev / "pts").mkdir()
    ns.mount(
        "devpts",
        dev / "pts",
        "devpts",
        ns.MS_NOSUID | ns.MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=620,gid=5",
    )
    (dev / "shm").mkdir()
    ns.mount("tmpfs", dev / "shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")


def _become_systemd(spec: KeeperSpec, root: Path) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    console = os.open(spec.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ns.pivot_into(root)
    # Sandboxing and credentials of units mount things of their own and need propagation downwards.
    ns.mount("", "/", flags=ns.MS_REC | ns.MS_SHARED)
    os.dup2(null, 0)
    os.dup2(console, 1)
    os.dup2(console, 2)
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.setsid()
    os.execve("/lib/systemd/systemd", ["/lib/systemd/systemd", "--unit=multi-user.target"], {"container": "hmlab"})


def _write_traceback(spec: KeeperSpec) -> None:
    import traceback  # noqa: PLC0415 (only on the way down; the keeper starts once a host)

    with Path(spec.console).open("a") as console:
        traceback.print_exc(file=console)


def remove_cgroup(path: Path) -> None:
    """Kill what runs below ``path`` and remove the tree; its processes take a moment to leave, cgroups(7).

    A keeper and a sweeping lab may do this at the same time.
    """
    try:
        (path / "cgroup.kill").write_text("1")
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise
    deadline = time.monotonic() + _CLEAN_UP_SECONDS
    while path.exists():
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):  # busy: seen again below, with a deadline
                Path(folder).rmdir()
        if path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} still has processes, or cannot be removed")
            time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
