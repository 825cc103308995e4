"""Turns a test into systemd and the agent for one real `hostmesh-proxy`: keeps its descriptors, talks to it."""

import asyncio
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from hostmesh.apply.proxy import ProxyClient
from tests.lab import namespaces as ns
from tests.lab.install import hostmesh_layer

_FIRST = 3
_SECONDS = 20.0
T = TypeVar("T")


def binary() -> Path:
    """The proxy as it is installed from the wheels."""
    return hostmesh_layer() / "opt/hostmesh/bin/hostmesh-proxy"


class Manager:
    """What systemd does for a unit with ``Type=notify`` and an fd store (sd_notify(3)); folder: state and sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder, dict[str, int]()
        self.control = str(folder / "control.sock")
        self._pid, self._ready = 0, False
        self._notify_path = str(folder / "notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(self._notify_path)

    def start(self) -> float:
        """Start with all that is kept, with CAP_NET_RAW alone; returns the seconds until it said that it is ready."""
        begin, self._ready = time.monotonic(), False
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._become_the_proxy()
            finally:
                os._exit(127)
        self.take_until(lambda: self._ready)
        return time.monotonic() - begin

    def _become_the_proxy(self) -> None:
        ns.die_with_parent(os.getppid(), signal.SIGKILL)
        # Copied beyond the numbers that are then written to, so that none is overwritten before its turn.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(self.kept)) for fd in self.kept.values()]
        for index, fd in enumerate(high):
            os.dup2(fd, _FIRST + index, inheritable=True)
        command = ["setpriv", "--no-new-privs", "--inh-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"]
        command += [str(binary()), "--control", self.control, "--state", str(self.folder), "--workers", "2"]
        passed = {"LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(self.kept), "LISTEN_PID": str(os.getpid())}
        os.execvpe(command[0], command, {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": self._notify_path} | passed)

    def kill(self) -> None:
        """End it as a crash does."""
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "it had ended by itself"

    def take_until(self, wanted: Callable[[], bool]) -> None:
        """Take messages, and descriptors to keep, until it is as wanted."""
        deadline = time.monotonic() + _SECONDS
        while not wanted():
            assert select.select([self._notify], [], [], max(0.0, deadline - time.monotonic()))[0], "it said nothing"
            self._take()

    def _take(self) -> None:
        data, fds, _, _ = socket.recv_fds(self._notify, 4096, 8)
        words = dict(line.split("=", 1) for line in data.decode().splitlines())
        self._ready |= "READY" in words
        if "FDSTORE" in words:
            assert len(fds) == 1 and words["FDNAME"] not in self.kept, words
            self.kept[words["FDNAME"]] = fds[0]
        elif "FDSTOREREMOVE" in words and (old := self.kept.pop(words["FDNAME"], None)) is not None:
            os.close(old)

    def kept_as(self, prefix: str) -> list[int]:
        """The descriptors that are kept under names that begin so."""
        return [fd for name, fd in self.kept.items() if name.startswith(prefix)]

    def take_until_listening(self) -> None:
        """Until the last of the listeners is kept, of TCP and of DNS."""
        self.take_until(lambda: any("wire-1" in name for name in self.kept) and "dns-v6" in self.kept)

    def agent(self, talk: Callable[[ProxyClient], Awaitable[T]]) -> T:
        """Be the agent for the time of one talk, with the agent's own client; systemd listens meanwhile."""

        async def go() -> T:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._notify, self._take)
            client = ProxyClient(self.control, lambda _: None)
            await client.connect()
            try:
                return await talk(client)
            finally:
                await client.close()
                loop.remove_reader(self._notify)

        return asyncio.run(go())
