"""A real controller on loopback: real TLS, real gRPC, a store on disk, in a process of its own or in this one."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh.agent.enrol import Joined, join
from hostmesh.controller import admin
from hostmesh.controller.config import Config

DEADLINE = 15.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mesh:
    """A controller's files, and the program that serves them. Hosts join into folders of their own."""

    def __init__(self, folder: Path, trust_domain: str = "mesh.test", **settings: object) -> None:
        self.folder = folder
        config = Config(
            trust_domain=trust_domain,
            state=folder / "controller",
            listen=("127.0.0.1",),
            port=free_port(),
            enrolment_port=free_port(),
        )
        self.config = replace(config, **settings)
        self.path = folder / "etc" / "controller.toml"
        admin.init(self.config, self.path, user=None)
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.config.port}"

    def start(self) -> None:
        """Start the real program; returns when it says READY to the socket that systemd would hold."""
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(notify))
            listener.settimeout(DEADLINE)
            with (self.folder / "log").open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "hostmesh.controller.main", "--config", str(self.path)],
                    env={"NOTIFY_SOCKET": str(notify), "PATH": "/usr/bin:/bin"},
                    stderr=log,
                )
            try:
                assert listener.recv(4096).startswith(b"READY=1")
            except TimeoutError:
                raise AssertionError((self.folder / "log").read_text()) from None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE)

    def token(self, host: str, *units: str) -> str:
        return admin.make_token(host, units, config_path=self.path)

    def state(self, host: str) -> Path:
        return self.folder / "hosts" / host

    def join(self, host: str, *units: str) -> Joined:
        where = self.state(host)
        return join(self.token(host, *units), state=where, config=where / "hostmesh.toml")

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    made = Mesh(tmp_path)
    made.start()
    yield made
    if made.process and made.process.poll() is None:
        assert made.stop() == 0, made.log()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*coroutines: object) -> AsyncIterator[None]:
    """Tasks that live as long as the block; one that fails, fails the test."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [r for r in results if isinstance(r, Exception)]
    assert not broken, broken
