"""A steady load of HTTP, redis and PostgreSQL without client retries: run on a host, prints one JSON line at the end.

    python3 - SECONDS_BETWEEN STOP_FILE

For each protocol two clients ask again and again: `held` on one connection for the whole run, `fresh` on a new one each
time. An error fails the request and is not tried again; of `held` it is a cut connection, too. What was counted so far
stands in STOP_FILE.counts, some times a second.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

TIMEOUT = 20.0


class Client(Protocol):
    """A connection of one protocol."""

    def ask(self) -> None:
        """One request, to its right answer. Raises OSError."""

    def close(self) -> None:
        """End the connection."""


class Http:
    """nginx's first page."""

    def __init__(self) -> None:
        self.client = http.client.HTTPConnection("web", 80, timeout=TIMEOUT)
        self.client.connect()
        self.client.auto_open = 0  # a connection that was closed stays so

    def ask(self) -> None:
        """200, with all of its body."""
        try:
            self.client.request("GET", "/")
            answer = self.client.getresponse()
            answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__} {error}") from error
        if answer.status != 200:
            raise OSError(f"status {answer.status}")

    def close(self) -> None:
        """As a browser does."""
        self.client.close()


class Redis:
    """A counter of its own: a request that is lost or comes twice is seen in the next answer."""

    def __init__(self) -> None:
        self.socket = socket.create_connection(("redis", 6379), TIMEOUT)
        self.answers = self.socket.makefile("rb")
        self.key = f"steady-{os.urandom(8).hex()}"
        self.asked = 0

    def ask(self) -> None:
        """Up by one."""
        self.asked += 1
        self.socket.sendall(f"INCR {self.key}\r\n".encode())
        answer = self.answers.readline()
        if answer != f":{self.asked}\r\n".encode():
            raise OSError(f"redis said {answer!r} after {self.asked} requests")

    def close(self) -> None:
        """Without a word, as most clients do."""
        self.socket.close()


class Postgres:
    """psql, unchanged."""

    def __init__(self) -> None:
        command = ["psql", "-h", "postgres", "-U", "shop", "-XAtq"]
        environment = {**os.environ, "PGPASSWORD": "shop"}
        pipe = subprocess.PIPE
        self.psql = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.asked = 0

    def ask(self) -> None:
        """A sum that only the server knows."""
        self.asked += 1
        assert self.psql.stdin and self.psql.stdout and self.psql.stderr
        self.psql.stdin.write(f"select {self.asked} + 1;\n")
        self.psql.stdin.flush()
        answer = self.psql.stdout.readline()
        if answer != f"{self.asked + 1}\n":
            raise OSError(f"psql said {answer!r}, {self.psql.stderr.read()!r}")

    def close(self) -> None:
        """The end of its input."""
        self.psql.communicate()


KINDS: dict[str, type[Client]] = {"http": Http, "redis": Redis, "postgres": Postgres}


class Count:
    """What one client saw."""

    def __init__(self) -> None:
        self.requests, self.failed, self.cut, self.slowest = 0, 0, 0, 0.0
        self.errors: list[str] = []

    def failure(self, error: OSError, held: bool) -> None:
        """One that went wrong."""
        self.failed += 1
        self.cut += held
        self.errors.append(f"{time.time():.3f} {type(error).__name__} {error}")


def run(kind: type[Client], held: bool, count: Count, pause: float, stop: Path) -> None:
    """One client's life."""
    client: Client | None = None
    while not stop.exists():
        begun = time.monotonic()
        count.requests += 1
        try:
            client = client or kind()
            client.ask()
        except OSError as error:
            count.failure(error, held)
            client = None
        count.slowest = max(count.slowest, time.monotonic() - begun)
        if client and not held:
            client.close()
            client = None
        time.sleep(pause)
    if client:
        client.close()


def main() -> None:
    """Run all clients, tell meanwhile, tell at the end."""
    pause, stop = float(sys.argv[1]), Path(sys.argv[2])
    counts = {f"{name} {how}": Count() for name in KINDS for how in ("held", "fresh")}
    threads = [
        threading.Thread(target=run, args=(KINDS[name.split()[0]], name.endswith("held"), count, pause, stop))
        for name, count in counts.items()
    ]
    for thread in threads:
        thread.start()
    told = Path(f"{stop}.counts")
    while any(thread.is_alive() for thread in threads):
        told.with_suffix(".new").write_text(json.dumps({name: vars(count) for name, count in counts.items()}))
        told.with_suffix(".new").rename(told)
        time.sleep(0.1)
    print(json.dumps({name: vars(count) for name, count in counts.items()}))


main()
