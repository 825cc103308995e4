"""Turns names into a lab: real systemd hosts on a network of their own, all gone when it closes.

What a lab makes on this machine: processes, one cgroup ``hmlab-ID``, one folder in ``/run/hostmesh-lab``; and
it raises ``fs.inotify.max_user_instances`` when that is too low for systemd (said on stderr). Keepers see the
lab's end by its closed pipe and take down their host; ``sweep`` clears what a lab and its keepers left that
were all killed.
"""

import fcntl
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.lab import rootfs
from tests.lab.capture import Capture
from tests.lab.host import Host
from tests.lab.keeper import KeeperSpec, remove_cgroup
from tests.lab.network import Network

STATE = Path("/run/hostmesh-lab")
_REPOSITORY = Path(__file__).resolve().parents[2]
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_WANTED = 1024
_ANSWER_SECONDS = 30.0


class LabError(Exception):
    """A lab that cannot be had here, with the remedy."""


class Keeper:
    """The process that keeps one host; the lab's end of its two pipes."""

    def __init__(self, spec: KeeperSpec) -> None:
        self.spec = spec
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "tests.lab.keeper", json.dumps(asdict(spec))],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the lab; it tells its keepers by closing the pipe
            bufsize=0,
        )

    def order(self, word: str) -> None:
        """Send one order; see the keeper's docstring."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    def answer(self, key: str) -> int:
        """Wait for the line that has ``key``; give its value."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            while b"\n" in self._received:
                line, _, self._received = self._received.partition(b"\n")
                said: dict[str, int] = json.loads(line)
                if key in said:
                    return said[key]
            self._received += self._read_before(self._process.stdout, deadline)

    def _read_before(self, stdout: IO[bytes], deadline: float) -> bytes:
        ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
        received = stdout.read(4096) if ready else b""
        if not received:
            console = Path(self.spec.console)
            said = console.read_text() if console.exists() else "(nothing)"
            what = "ended" if ready else "is silent"
            raise LabError(f"the keeper of {self.spec.name} {what}; its console said:\n{said}")
        return received

    def let_go(self) -> None:
        """Close the pipe: the keeper takes its host down. Does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the keeper has cleaned up; LabError if it could not."""
        assert self._process.stdout is not None
        status = self._process.wait(_ANSWER_SECONDS)
        self._process.stdout.close()
        if status:
            raise LabError(f"the keeper of {self.spec.name} ended with {status}")


class Lab:
    """Hosts, booted by ``with``. ``layers`` go over Debian, lowest first; the hand tool finds an ``open_house``."""

    def __init__(
        self, names: Sequence[str] = ("h1", "h2"), *, layers: Sequence[Path] = (), open_house: bool = False
    ) -> None:
        self.id = f"hmlab-{secrets.token_hex(4)}"
        self.hosts: dict[str, Host] = {}
        self._names = tuple(names)
        self._over = tuple(layers)
        self._open_house = open_house
        self._folder = STATE / self.id
        self._cgroup = cgroup2_mount() / self.id
        self._keepers: dict[str, Keeper] = {}
        self._switch: Keeper | None = None
        self._exit = ExitStack()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def network(self) -> Network:
        """The switch between the hosts."""
        return self._network

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab boots systemd in namespaces: run it as root")
        sweep()
        _raise_inotify_limit()
        layers = [rootfs.debian(), *self._over]
        self._exit.enter_context(rootfs.in_use(layers))
        self._claim()
        self._cgroup.mkdir()
        self._switch = self._keep("switch", [])
        self._switch.order("boot")
        for name in self._names:
            self._keepers[name] = self._keep(name, [str(layer) for layer in layers])
            self._keepers[name].order("boot")
        self._network = Network(f"/proc/{self._switch.answer('init')}/ns/net")
        self._network.build()
        for index, (name, keeper) in enumerate(self._keepers.items(), start=1):
            self._bring_up(Host(name, index, keeper.answer("init"), Path(keeper.spec.console)))
        for host in self.hosts.values():
            host.wait_booted()

    def _claim(self) -> None:
        """Make the folder, already locked when it gets the name that other labs sweep by."""
        draft = STATE / f"new-{self.id}"
        draft.mkdir(parents=True)
        lock = self._exit.enter_context((draft / "lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        (draft / "owner").write_text(str(os.getpid()))
        draft.rename(self._folder)

    def _keep(self, name: str, layers: list[str]) -> Keeper:
        disk = self._folder / f"{name}.disk"
        disk.mkdir()
        cgroup = self._cgroup / name
        cgroup.mkdir()
        files = _files(name, self._names)
        return Keeper(KeeperSpec(name, layers, str(disk), str(self._folder / f"{name}.console"), str(cgroup), files))

    def _bring_up(self, host: Host) -> None:
        self._network.join(host)
        self._keepers[host.name].order("go")
        self.hosts[host.name] = host
        self._tell()

    def _tell(self) -> None:
        told = {
            "open": self._open_house,
            "hosts": {h.name: [h.index, h.pid, str(h.console)] for h in self.hosts.values()},
        }
        draft = self._folder / "hosts.part"
        draft.write_text(json.dumps(told))
        draft.rename(self._folder / "hosts.json")

    def reboot(self, name: str, *, orderly: bool = False) -> Host:
        """Pull a host's plug (``orderly``: let it shut down by itself), boot it again with the disk that it had.

        Gives the new Host when it is up. Its network namespace is another one.
        """
        before, keeper = self.hosts[name], self._keepers[name]
        if orderly:
            before.exec(["systemctl", "--no-block", "poweroff"]).must()
        else:
            before.kill()
        keeper.answer("exit")
        self._network.leave(before)
        keeper.order("boot")
        after = Host(name, before.index, keeper.answer("init"), before.console)
        self._bring_up(after)
        after.wait_booted()
        return after

    def capture(self, bpf_filter: str | None = None) -> AbstractContextManager[Capture]:
        """See every frame between the hosts while the ``with`` body runs; ``bpf_filter`` as for tcpdump."""
        return self._network.capture(bpf_filter)

    def close(self) -> None:
        """Take everything down; nothing of the lab is left when this returns."""
        keepers = [*self._keepers.values(), *([self._switch] if self._switch else [])]
        self._keepers, self._switch, self.hosts = {}, None, {}
        for keeper in keepers:
            keeper.let_go()
        with self._exit:  # last in, first out: the keepers clear up theirs before the rest goes
            self._exit.callback(_clear, self._folder, self._cgroup)
            for keeper in keepers:
                self._exit.callback(keeper.wait)


def _clear(folder: Path, cgroup: Path) -> None:
    remove_cgroup(cgroup)
    if folder.exists():
        shutil.rmtree(folder)


def sweep() -> None:
    """Clear what labs left whose processes were all killed: their lock is free."""
    for folder in STATE.glob("hmlab-*"):
        try:
            lock = (folder / "lock").open("r")
        except FileNotFoundError:  # just being made, or just being cleared, by another lab
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _clear(folder, cgroup2_mount() / folder.name)
    for cgroup in cgroup2_mount().glob("hmlab-*"):
        if not (STATE / cgroup.name).exists():  # a living lab has its folder before its cgroup, and after it
            remove_cgroup(cgroup)


def cgroup2_mount() -> Path:
    """Where this machine has its cgroup2 tree: /sys/fs/cgroup, or below it beside v1 controllers."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    raise LabError("no cgroup2 is mounted here: mount -t cgroup2 none /sys/fs/cgroup")


def _raise_inotify_limit() -> None:
    now = int(_INOTIFY.read_text())
    if now < _INOTIFY_WANTED:
        _INOTIFY.write_text(f"{_INOTIFY_WANTED}\n")
        print(
            f"lab: fs.inotify.max_user_instances was {now}, is {_INOTIFY_WANTED} (systemd needs it)",
            file=sys.stderr,
        )


def _files(name: str, names: Sequence[str]) -> dict[str, str]:
    """What makes a host itself. It has a machine-id: without one systemd would take this for a first boot."""
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    for index, other in enumerate(names, start=1):
        hosts += [f"198.18.0.{index} {other}", f"2001:2::{index:x} {other}"]
    return {
        "/etc/hostname": f"{name}\n",
        "/etc/machine-id": f"{secrets.token_hex(16)}\n",
        "/etc/hosts": "\n".join(hosts) + "\n",
        "/etc/resolv.conf": "# no resolver in the lab\n",
    }
