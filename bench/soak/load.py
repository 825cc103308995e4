"""Callers of services, many at once: runs on a host, one process with one epoll, and prints a JSON line now and then.

    python3 load.py '{"body", "seconds", "every", "groups": [{"name", "host", "port", "connections", "rate"}, …]}'

A group's `connections` are opened once and asked in turn; where it has none, each request opens one, which the other
side ends. `rate` requests a second are due whatever became of those before, and their time counts from when they were
due. A connection that is lost is an error, and stays away.
"""

import collections
import errno
import json
import resource
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 20.0  # seconds for an answer
LONGER = 2.0  # seconds after the last line, so that who reads it finds the load running
CHUNK = 65536
OPENED = select.EPOLLOUT
SAID = select.EPOLLIN


@dataclass(slots=True)
class Connection:
    """One socket; ``due``: since when a request is under way, 0 while none is."""

    group: "Group"
    socket: socket.socket
    due: float = 0.0
    data: bytes = b""


@dataclass
class Group:
    """Requests of one kind; ``free``: kept connections on which none is under way."""

    name: str
    address: Any
    rate: float
    request: bytes
    kept: bool
    due: float = 0.0
    free: "collections.deque[Connection]" = field(default_factory=collections.deque)
    open: int = 0
    times: list[float] = field(default_factory=list)


class Load:
    """All groups, their connections, and what went wrong."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.answer = b"\r\n\r\n" + told["body"].encode()
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.waiting: dict[int, float] = {}
        self.errors: collections.Counter[str] = collections.Counter()
        self.groups = []
        for one in told["groups"]:
            host, connections = one["host"], one["connections"]
            address = socket.getaddrinfo(host, one["port"], socket.AF_INET, socket.SOCK_STREAM)[0][4]
            close = b"" if connections else b"Connection: close\r\n"
            request = b"GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (host.encode(), close)
            group = Group(one["name"], address, one["rate"], request, kept=connections > 0)
            self.groups.append(group)
            for _ in range(connections):
                self.keep(group)

    def keep(self, group: Group) -> None:
        """Opens a connection and asks once, so that it is open to its other end."""
        connection = Connection(group, socket.create_connection(group.address, PATIENCE))
        connection.socket.sendall(group.request)
        while not connection.data.endswith(self.answer):
            said = connection.socket.recv(CHUNK)
            if not said:
                raise ConnectionError(f"{group.name}: {connection.data[:200]!r} and no more")
            connection.data += said
        connection.data = b""
        connection.socket.setblocking(False)
        self.watch(connection, SAID)
        group.free.append(connection)

    def watch(self, connection: Connection, event: int) -> None:
        """Hears of the connection from now on."""
        connection.group.open += 1
        self.connections[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket, event)

    def drop(self, connection: Connection, error: str = "") -> None:
        """Closes it."""
        if error:
            self.errors[f"{connection.group.name}: {error}"] += 1
        connection.group.open -= 1
        number = connection.socket.fileno()
        self.waiting.pop(number, None)
        del self.connections[number]
        self.epoll.unregister(number)
        connection.socket.close()

    def ask(self, group: Group, now: float) -> None:
        """All requests that are due, as far as there is a connection for them."""
        while group.due <= now:
            if not group.kept:
                self.open(group)
            elif group.free:
                connection = group.free.popleft()
                connection.due = group.due
                self.send(connection)
            else:
                return
            group.due += 1 / group.rate

    def open(self, group: Group) -> None:
        """Begins a connection for one request."""
        try:
            caller = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            begun = caller.connect_ex(group.address)
        except OSError as error:
            self.errors[f"{group.name}: {error.strerror}"] += 1
            return
        connection = Connection(group, caller, group.due)
        self.watch(connection, OPENED)
        self.waiting[caller.fileno()] = group.due
        if begun not in (0, errno.EINPROGRESS):
            self.drop(connection, errno.errorcode[begun])

    def send(self, connection: Connection) -> None:
        """Asks; a request is small, the socket's buffer is empty."""
        self.waiting[connection.socket.fileno()] = connection.due
        try:
            connection.socket.send(connection.group.request)
        except OSError as error:
            self.drop(connection, f"send: {error.strerror}")

    def hear(self, connection: Connection, event: int) -> None:
        """Something happened on it."""
        if event & OPENED and not connection.data:
            self.epoll.modify(connection.socket, SAID)
            self.send(connection)
            return
        try:
            said = connection.socket.recv(CHUNK)
        except OSError as error:
            self.drop(connection, f"receive: {error.strerror}")
            return
        connection.data += said
        whole = connection.data.startswith(b"HTTP/1.1 200 ") and connection.data.endswith(self.answer)
        if not connection.due:
            self.drop(connection, "ended while idle" if not said else "said something unasked")
        elif connection.group.kept and whole:
            self.answered(connection)
            connection.due, connection.data = 0.0, b""
            connection.group.free.append(connection)
        elif not said and whole and not connection.group.kept:
            self.answered(connection)
            self.drop(connection)
        elif not said or len(connection.data) > CHUNK:
            self.drop(connection, f"answer: {connection.data[:40]!r}")

    def answered(self, connection: Connection) -> None:
        """Counts an answer that is right."""
        connection.group.times.append(time.monotonic() - connection.due)
        self.waiting.pop(connection.socket.fileno(), None)

    def give_up(self, now: float) -> None:
        """Drops those that wait too long; the oldest come first."""
        while self.waiting:
            number, due = next(iter(self.waiting.items()))
            if now - due < PATIENCE:
                return
            self.drop(self.connections[number], f"no answer within {PATIENCE:g} s")

    def run(self, seconds: float, every: float) -> None:
        """Asks until the time is over, telling every so often."""
        begun = now = time.monotonic()
        told = begun
        for group in self.groups:
            group.due = begun
        while now < begun + seconds + LONGER:
            for group in self.groups:
                self.ask(group, now)
            for number, event in self.epoll.poll(0.001, 4096):
                if number in self.connections:
                    self.hear(self.connections[number], event)
            now = time.monotonic()
            if now >= told + every:
                self.give_up(now)
                self.tell(now - begun, now - told)
                told = now

    def tell(self, at: float, past: float) -> None:
        """One line of what happened since the last."""
        of = {}
        for group in self.groups:
            times = sorted(group.times)
            parts = {f"p{part}": times[len(times) * part // 100] * 1000 for part in (50, 99) if times}
            slowest = times[-1] * 1000 if times else 0.0
            of[group.name] = {"rate": len(times) / past, "open": group.open, "slowest": slowest, **parts}
            group.times.clear()
        print(json.dumps({"at": at, "groups": of, "errors": self.errors}), flush=True)


def main() -> None:
    """Open what is kept, say so, run."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    told = json.loads(sys.argv[1])
    load = Load(told)
    print(json.dumps({"opened": {group.name: group.open for group in load.groups}}), flush=True)
    load.run(told["seconds"], told["every"])


main()
