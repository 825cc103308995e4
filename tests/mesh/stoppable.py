"""Commands of a host that go on until a file is there: loads, knockers, holders of connections."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.lab.host import Host


@dataclass
class Running:
    """One of them; ``stdout`` is there once it has ended."""

    process: "subprocess.Popen[str]"
    stop: str
    stdout: str = ""


@contextlib.contextmanager
def stoppable(host: Host, argv: Callable[[str], Sequence[str]], *, timeout: float = 60.0) -> Iterator[Running]:
    """Runs while the ``with`` body does; ``argv`` is given the path of the file that ends it in ``timeout`` seconds.

    It must end well.
    """
    stop = f"/run/stop-{time.monotonic_ns()}"
    with host.popen(argv(stop)) as process:
        running = Running(process, stop)
        try:
            yield running
        finally:
            host.exec(["touch", stop]).must()
            running.stdout, stderr = process.communicate(timeout=timeout)
            host.exec(["rm", stop]).must()
    assert process.returncode == 0, stderr
