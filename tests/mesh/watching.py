"""Somebody who looks at a host by `hostmesh tap` or `hostmesh top`, for the length of a ``with``."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.host import Host


class Watching:
    """The command while it runs, in a process group of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def line(self) -> dict[str, Any]:
        """The next record; waits for it."""
        assert self._process.stdout
        text = self._process.stdout.readline()
        assert text, "the command ended"
        told: dict[str, Any] = json.loads(text)
        return told

    def all(self, timeout: float = 20.0) -> list[dict[str, Any]]:
        """All records until the command ends by itself, well."""
        text, errors = self._process.communicate(timeout=timeout)
        assert self._process.returncode == 0, errors
        return [json.loads(line) for line in text.splitlines()]

    def text(self) -> str:
        """All that it printed, until it ends by itself."""
        return self._process.communicate(timeout=20)[0]

    def send(self, number: signal.Signals) -> None:
        """To the command alone: nsenter, which waits for it as its parent, would die of the signal first."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        [command] = map(int, children.split())
        os.kill(command, number)

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(20)

    def say(self) -> str:
        """A line that it says beside its output."""
        assert self._process.stderr
        return self._process.stderr.readline()


@contextlib.contextmanager
def watching(host: Host, *words: str) -> Iterator[Watching]:
    """``hostmesh WORDS``; ended with the ``with``, if it has not ended before."""
    # Who runs in the background of a shell, as the tests may, ignores SIGINT, and hands that down.
    with host.popen(["env", "--default-signal=INT", "hostmesh", *words]) as process:
        try:
            yield Watching(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def tapping(host: Host, *words: str) -> Iterator[Watching]:
    """``hostmesh tap --json WORDS``, from when it really looks."""
    with watching(host, "tap", "--json", *words) as tap:
        said = tap.say()
        assert said.startswith("looking at "), said
        yield tap
