# ruff: noqa: ANN401 (any function of a test runs here, with any arguments)
"""Turns this process into a host of its own: network, cgroup tree and mounts, with a peer behind a veth pair.

A test's function runs in a forked child in there; whatever it starts dies with it. The parent removes the cgroups.
"""

import os
import pickle
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.lab import namespaces as ns

HERE4, HERE6, PEER4, PEER6 = "198.18.7.1", "2001:2:7::1", "198.18.7.2", "2001:2:7::2"
CGROUP = Path("/sys/fs/cgroup")
TIMEOUT = 40.0
_IP_TRANSPARENT, _IPV6_TRANSPARENT, _SO_RCVMARK = 19, 75, 75


class Failed(AssertionError):
    """A test that ran in a child failed there."""


@dataclass
class World:
    """What a test has in hand. Paths of cgroups count from the world's own root."""

    peer: str
    children: list[int] = field(default_factory=list)

    def cgroup(self, path: str) -> str:
        (CGROUP / path).mkdir(parents=True, exist_ok=True)
        return path

    def run(self, function: Callable[..., Any], *args: Any, cgroup: str = "", peer: bool = False) -> Any:
        """``function(*args)`` in a process of that cgroup, here or at the peer; its result, or its exception."""
        return self.start(function, *args, cgroup=cgroup, peer=peer)()

    def start(
        self, function: Callable[..., Any], *args: Any, cgroup: str = "", peer: bool = False
    ) -> Callable[[], Any]:
        """The same, without waiting: the result is fetched by calling what is returned."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            ns.die_with_parent(os.getppid(), signal.SIGKILL)
            _child(lambda: self._enter_and_call(function, args, cgroup, peer), write)
        os.close(write)
        self.children.append(pid)
        return lambda: _result(read, TIMEOUT / 2)

    def _enter_and_call(self, function: Callable[..., Any], args: tuple[Any, ...], cgroup: str, peer: bool) -> Any:
        (CGROUP / cgroup / "cgroup.procs").write_text(str(os.getpid()))
        if peer:
            ns.set_netns(self.peer)
        return function(*args)

    def start_ready(
        self, function: Callable[..., Any], *args: Any, cgroup: str = "", peer: bool = False
    ) -> Callable[[], Any]:
        """As `start`, with a descriptor as first argument: returns when the function has written ``ok`` to it."""
        read, write = os.pipe()
        result = self.start(function, write, *args, cgroup=cgroup, peer=peer)
        os.close(write)
        assert _wait_readable(read, 10)
        assert os.read(read, 2) == b"ok"
        os.close(read)
        return result

    def serve(self, address: str, port: int, cgroup: str = "", peer: bool = False, **options: Any) -> None:
        """A listener that tells each who connects what it sees; returns when it listens."""
        read, write = os.pipe()
        self.start(_serve, write, address, port, options, cgroup=cgroup, peer=peer)
        os.close(write)
        assert _wait_readable(read, 10) and os.read(read, 2) == b"ok", f"no listener on {address}:{port}"
        os.close(read)


def _serve(ready: int, address: str, port: int, options: dict[str, Any]) -> None:
    with listener(address, port, **options) as server:
        os.write(ready, b"ok")
        os.close(ready)
        while True:
            if server.type == socket.SOCK_DGRAM:
                data, ancillary, _, peer = server.recvmsg(2048, 256)
                mark = next((int.from_bytes(d, "little") for lvl, t, d in ancillary if t == socket.SO_MARK), 0)
                server.sendto(pickle.dumps({"mark": mark, "peer": peer[0], "data": data}), peer)
                continue
            connection, peer = server.accept()
            with connection:
                mark = connection.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
                seen = {"mark": mark, "to": connection.getsockname()[:2], "peer": peer[0], "cgroup": own_cgroup()}
                connection.sendall(pickle.dumps(seen))


def listener(address: str, port: int, transparent: bool = False, udp: bool = False) -> socket.socket:
    """A listening TCP, or bound UDP, socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if transparent:
        level, option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if family == socket.AF_INET6 else (0, _IP_TRANSPARENT)
        made.setsockopt(level, option, 1)
    made.bind((address, port))
    if udp:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
    else:
        made.listen(64)
    return made


def own_cgroup() -> str:
    """The cgroup2 path of this process, from the world's root."""
    return next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))


def ask(address: str, port: int, source: str = "", mark: int = 0, timeout: float = 3.0) -> Any:
    """Connect, and return what the listener saw; else the error's number and the seconds that it took."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    begin = time.monotonic()
    with socket.socket(family) as client:
        client.settimeout(timeout)
        if mark:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source:
            level, option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if ":" in source else (0, _IP_TRANSPARENT)
            client.setsockopt(level, option, 1)
            client.bind((source, 0))
        try:
            client.connect((address, port))
            data = b""
            while part := client.recv(4096):
                data += part
        except TimeoutError:
            return "timeout", time.monotonic() - begin
        except OSError as error:
            return error.errno, time.monotonic() - begin
        return pickle.loads(data)


def ask_udp(address: str, port: int, timeout: float = 2.0, mark: int = 0) -> Any:
    """Send a datagram, and return the answer; else the error's number, or ``timeout``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        if mark:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            client.connect((address, port))
            client.send(b"?")
            return pickle.loads(client.recv(2048))
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return error.errno


def _child(body: Callable[[], Any], write: int) -> None:
    """Run, report by the pipe, end: never returns to the test runner."""
    try:
        outcome: tuple[str, Any] = ("ok", body())
    except BaseException as error:  # noqa: BLE001 it is reported to the parent
        outcome = ("failed", "".join(traceback.format_exception(error)))
    try:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(pickle.dumps(outcome))
    finally:
        os._exit(0)


def _wait_readable(descriptor: int, timeout: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout)[0])


def _result(read: int, timeout: float) -> Any:
    deadline, data = time.monotonic() + timeout, b""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while True:
            if not _wait_readable(read, max(0.0, deadline - time.monotonic())):
                raise Failed(f"no end after {timeout:.0f} s")
            part = pipe.read(65536)
            if not part:
                break
            data += part
    if not data:
        raise Failed("the child ended without a word")
    kind, value = pickle.loads(data)
    if kind == "failed":
        raise Failed(value)
    return value


def _cgroup2() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    pytest.fail("no cgroup2 is mounted on this machine")


def in_world(test: Callable[[World], None]) -> None:
    """Run the test in a world of its own; its failure is raised here."""
    assert os.geteuid() == 0, "kernel tests need root"
    _sweep()
    top = _cgroup2() / f"hostmesh-test-{os.getpid()}-{time.monotonic_ns()}"
    top.mkdir()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setsid()
        ns.die_with_parent(os.getppid(), signal.SIGKILL)
        _child(lambda: _live(top, test), write)
    os.close(write)
    try:
        _result(read, TIMEOUT)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _remove(top)


def _sweep() -> None:
    """Worlds whose test was killed: their processes died with it, their cgroups did not."""
    for left in _cgroup2().glob("hostmesh-test-*-*"):
        if not Path(f"/proc/{left.name.split('-')[2]}").exists():
            _remove(left)


def _live(top: Path, test: Callable[[World], None]) -> None:
    (top / "cgroup.procs").write_text(str(os.getpid()))
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWCGROUP)
    ns.mount("", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.unmount(CGROUP)
    ns.mount("cgroup2", CGROUP, "cgroup2")
    hold, release = os.pipe()
    ready, go = os.pipe()
    peer = os.fork()
    if peer == 0:
        ns.die_with_parent(os.getppid(), signal.SIGKILL)
        os.close(release)
        ns.unshare(ns.CLONE_NEWNET)
        os.write(go, b"!")
        os.read(hold, 1)
        os._exit(0)
    os.read(ready, 1)
    world = World(f"/proc/{peer}/ns/net")
    _link(peer)
    try:
        test(world)
    finally:
        for child in (*world.children, peer):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _link(peer: int) -> None:
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        ip.link("add", ifname="wire", kind="veth", peer={"ifname": "wire", "net_ns_fd": f"/proc/{peer}/ns/net"})
        _address(ip, HERE4, HERE6)
    pid = os.fork()
    if pid == 0:
        ns.set_netns(f"/proc/{peer}/ns/net")
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")
            _address(ip, PEER4, PEER6)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def _address(ip: IPRoute, v4: str, v6: str) -> None:
    index = ip.link_lookup(ifname="wire")[0]
    ip.addr("add", index=index, address=v4, prefixlen=24)
    ip.addr("add", index=index, address=v6, prefixlen=64, flags=0x02)  # nodad
    ip.link("set", index=index, state="up")


def _remove(top: Path) -> None:
    """The world's cgroups, when the last of its processes has gone."""
    deadline = time.monotonic() + 10
    while "populated 1" in (top / "cgroup.events").read_text():
        assert time.monotonic() < deadline, f"{top} is not empty"
        for process in [int(text) for file in top.rglob("cgroup.procs") for text in file.read_text().split()]:
            os.kill(process, signal.SIGKILL)
        select.select([], [], [], 0.01)
    for folder in sorted(top.rglob("*/"), reverse=True):
        folder.rmdir()
    top.rmdir()
