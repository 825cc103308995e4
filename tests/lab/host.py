"""Turns a booted host into things to do with it: run, read, write, watch, kill."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from tests.lab.waiting import MayYetError, NotInTimeError, wait_until

T = TypeVar("T")

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}
_MANAGER = {"destination": "org.freedesktop.systemd1", "path": "/org/freedesktop/systemd1"}
_unit_numbers = itertools.count(1)


class CommandFailedError(MayYetError):
    """A command that had to succeed on a host and didn't."""


@dataclass(frozen=True)
class Result:
    """What a command on a host did. ``exit`` is negative for a signal, as in subprocess."""

    host: str
    argv: tuple[str, ...]
    exit: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Did it end with 0?"""
        return self.exit == 0

    def must(self) -> "Result":
        """Itself, if it ended with 0; else CommandFailedError with all that it said."""
        if not self.ok:
            said = f"{self.stdout}{self.stderr}".rstrip()
            raise CommandFailedError(f"{self.host}: {' '.join(self.argv)} ended with {self.exit}\n{said}")
        return self


@dataclass(frozen=True)
class Host:
    """A running host. ``pid`` is its systemd, seen from outside; a reboot makes another Host."""

    name: str
    index: int
    pid: int
    console: Path

    @property
    def ipv4(self) -> str:
        """Its address on ``eth0``, /24."""
        return f"198.18.0.{self.index}"

    @property
    def ipv6(self) -> str:
        """Its address on ``eth0``, /64."""
        return f"2001:2::{self.index:x}"

    @property
    def mac(self) -> str:
        """Its link-layer address on ``eth0``."""
        return f"02:00:c6:12:00:{self.index:02x}"

    @property
    def netns(self) -> str:
        """Path of its network namespace, for pyroute2 and setns(2)."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def root(self) -> Path:
        """Its root from outside. Absolute links in it lead to this machine: use ``read`` and ``write``."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def dbus_address(self) -> str:
        """Its system bus, from outside."""
        return f"unix:path={self.root}/run/dbus/system_bus_socket"

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 (subprocess's word)
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Result:
        """Run ``argv`` with an administrator's hand: root, in all the host's namespaces, in no unit's cgroup.

        Traffic that shall count as a unit's must come from ``run_unit``. ``timeout`` in seconds.
        """
        return self._finish(argv, argv, input=input, env=env, timeout=timeout)

    def _finish(
        self,
        told: Sequence[str],
        argv: Sequence[str],
        *,
        input: str | None,  # noqa: A002
        env: Mapping[str, str] | None,
        timeout: float,
        unit: str | None = None,
    ) -> Result:
        """Run ``argv`` to its end, or end it at ``timeout``; ``told`` is what the caller asked for."""
        with self.popen(argv, env=env, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except BaseException as error:
                if unit:  # it has the pipes, and is no child of the process
                    self.exec(["systemctl", "kill", "--signal=SIGKILL", unit])
                # nsenter forks to enter a pid namespace: the command is in its process group, not its pid.
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.killpg(process.pid, signal.SIGKILL)
                stdout, stderr = process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    said = f"{self.name}: {' '.join(told)}: still running after {timeout:g} s\n{stdout}{stderr}"
                    raise NotInTimeError(said.rstrip()) from error
                raise
        return Result(self.name, tuple(told), process.returncode, stdout, stderr)

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[str]":
        """Start ``argv`` as ``exec`` does and give the process; a group of its own, its output in pipes."""
        return subprocess.Popen(
            self.enter_argv(argv),
            env={**ENVIRONMENT, **(env or {})},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def enter_argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` inside, from outside."""
        return ["nsenter", f"--target={self.pid}", "--all", "--", *argv]

    def run_unit(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        slice: str | None = None,  # noqa: A002 (systemd's word)
        unit: str | None = None,
        properties: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002
        timeout: float = 30.0,
    ) -> Result:
        """Run ``argv`` as a transient unit with a cgroup of its own, wait for its end, give what it said.

        ``properties`` as for systemd-run(1), ``NAME=VALUE``. A unit that outlives ``timeout`` is killed.
        """
        name = unit or new_unit_name()
        command = unit_argv(argv, unit=name, user=user, slice=slice, properties=properties, env=env)
        return self._finish(argv, command, input=input, env=None, timeout=timeout, unit=name)

    @contextlib.contextmanager
    def unit(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        slice: str | None = None,  # noqa: A002
        unit: str | None = None,
        properties: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Iterator[str]:
        """Keep ``argv`` running as a transient unit for the length of a ``with``; its output: the journal.

        Gives the unit's name. With ``properties=["Type=notify"]`` the body starts when it is ready.
        """
        name = unit or new_unit_name()
        command = unit_argv(argv, unit=name, user=user, slice=slice, properties=properties, env=env, attached=False)
        self.exec(command).must()
        try:
            yield name
        finally:
            # --collect forgets a unit that ended by itself: then there is nothing left to stop
            if self.exec(["systemctl", "is-active", name]).ok:
                self.exec(["systemctl", "stop", name]).must()

    def systemctl(self, *arguments: str, timeout: float = 60.0) -> Result:
        """``systemctl ARGUMENTS``, which must succeed; if not, the journal's end is part of the failure."""
        done = self.exec(["systemctl", *arguments], timeout=timeout)
        if not done.ok:
            tail = self.exec(["journalctl", "--no-pager", "-n", "40"]).stdout
            raise CommandFailedError(f"{self.name}: systemctl {' '.join(arguments)}\n{done.stderr}{tail}")
        return done

    def main_pid(self, unit: str) -> int:
        """The main process of a unit, by the pids of this host; 0 while there is none."""
        return int(self.exec(["systemctl", "show", "-P", "MainPID", unit]).must().stdout)

    def wait_another_process(self, unit: str, before: int, timeout: float = 10.0) -> None:
        """Wait until the main process of a unit is another than ``before``."""
        wait_until(lambda: self.main_pid(unit) not in (0, before), f"{self.name}: another {unit}", timeout, 0.05)

    def process_stat(self, unit: str) -> list[str]:
        """What proc_pid_stat(5) says of the main process of a unit, from field 3 on: the second may hold spaces."""
        return self.read(f"/proc/{self.main_pid(unit)}/stat").rpartition(")")[2].split()

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: str = "root", group: str = "root") -> None:
        """Make ``path`` a file with ``text``, folders above it too; an existing file is replaced."""
        how = ["install", "-D", "-m", f"{mode:o}", "-o", owner, "-g", group, "/dev/stdin", path]
        self.exec(how, input=text).must()

    def read(self, path: str) -> str:
        """The text of the file at ``path``."""
        return self.exec(["cat", path]).must().stdout

    def exists(self, path: str) -> bool:
        """Is there anything at ``path``?"""
        return self.exec(["test", "-e", path]).ok

    def journal(self, *, unit: str | None = None, after: str | None = None, **fields: str) -> list[dict[str, Any]]:
        """Journal entries with all ``fields``, oldest first, as ``journalctl -o json`` gives them.

        ``unit`` selects as ``journalctl -u`` does (also what others wrote about it); ``after`` is a cursor.
        """
        command = [
            "journalctl",
            "--output=json",
            "--no-pager",
            "--all",
            *(f"{k}={v}" for k, v in fields.items()),
        ]
        command += [f"--unit={unit}"] if unit else []
        # Not --after-cursor: it skips the first entry found, which with fields is not that of the cursor (252).
        command += [f"--cursor={after}"] if after else []
        self.exec(["journalctl", "--sync"]).must()
        entries = [json.loads(line) for line in self.exec(command).must().stdout.splitlines()]
        return [entry for entry in entries if entry["__CURSOR"] != after]

    def journal_cursor(self) -> str:
        """The place in the journal that is now its end."""
        self.exec(["journalctl", "--sync"]).must()
        last = self.exec(["journalctl", "--output=json", "--no-pager", "--lines=1"]).must().stdout
        cursor: str = json.loads(last)["__CURSOR"]
        return cursor

    def failed_units(self) -> list[str]:
        """Names of units in state failed."""
        listed = self.exec(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).must().stdout
        return [line.split()[0] for line in listed.splitlines()]

    def kill(self) -> None:
        """Pull the plug: all processes are gone, memory, rules and addresses too; the disk stays."""
        os.kill(self.pid, signal.SIGKILL)

    def wait_booted(self, timeout: float = 60.0) -> str:
        """Wait until systemd says that it is ``running`` or ``degraded``, and give that word."""
        try:
            return run_async(_booted(self, timeout))
        except TimeoutError as error:
            raise NotInTimeError(f"{self.name} has not booted within {timeout:g} s; {_why(self)}") from error

    def wait_port(self, port: int, address: str = "127.0.0.1", timeout: float = 10.0) -> None:
        """Wait until something accepts TCP connections on ``address``."""
        probe = ["nc", "-z", "-w", "1", address, str(port)]
        wait_until(lambda: self.exec(probe).ok, f"{self.name}: {address}:{port} accepts", timeout, 0.05)


def new_unit_name() -> str:
    """A transient unit's name that this process has not given before."""
    return f"lab-{os.getpid()}-{next(_unit_numbers)}.service"


def unit_argv(
    argv: Sequence[str],
    *,
    unit: str,
    user: str | None = None,
    slice: str | None = None,  # noqa: A002
    properties: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    attached: bool = True,
    terminal: bool = False,
) -> list[str]:
    """The systemd-run(1) line that runs ``argv`` as ``unit``; ``attached``: with our stdio, until its end."""
    line = ["systemd-run", "--quiet", "--collect", f"--unit={unit}"]
    if attached:
        line += ["--wait", "--pty" if terminal else "--pipe"]
    line += [f"--uid={user}"] if user else []
    line += [f"--slice={slice}"] if slice else []
    line += [f"--property={setting}" for setting in properties]
    line += [f"--setenv={name}={value}" for name, value in (env or {}).items()]
    return [*line, "--", *argv]


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, whether or not the caller has an event loop of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _booted(host: Host, seconds: float) -> str:
    async with asyncio.timeout(seconds):
        bus = await _connect(host)
        try:
            changed = asyncio.Event()
            bus.add_message_handler(lambda message: changed.set() if message.member == "StartupFinished" else None)
            rule = "type='signal',interface='org.freedesktop.systemd1.Manager',member='StartupFinished'"
            await _call(bus, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", rule)
            await _call(bus, **_MANAGER, interface="org.freedesktop.systemd1.Manager", member="Subscribe")
            while (state := await _system_state(bus)) not in {"running", "degraded"}:
                with contextlib.suppress(TimeoutError):  # the state may settle a moment after the signal
                    async with asyncio.timeout(0.2):
                        await changed.wait()
            return state
        finally:
            bus.disconnect()


async def _connect(host: Host) -> MessageBus:
    while True:
        try:
            return await MessageBus(bus_address=host.dbus_address).connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if not host.root.exists():
                raise ChildProcessError(f"{host.name} died while booting; {_why(host)}") from None
            await asyncio.sleep(0.01)


async def _system_state(bus: MessageBus) -> str:
    answer = await _call(
        bus,
        **_MANAGER,
        interface="org.freedesktop.DBus.Properties",
        member="Get",
        body=("org.freedesktop.systemd1.Manager", "SystemState"),
    )
    state: str = answer[0].value
    return state


async def _call(
    bus: MessageBus,
    destination: str,
    path: str,
    interface: str,
    member: str,
    *text: str,
    body: Sequence[str] = (),
) -> list[Any]:
    arguments = [*text, *body]
    reply = await bus.call(
        Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature="s" * len(arguments),
            body=arguments,
        )
    )
    if reply is None or reply.message_type is MessageType.ERROR:
        raise ConnectionError(f"{interface}.{member}: {reply.body if reply else 'no reply'}")
    return list(reply.body)


def _why(host: Host) -> str:
    console = host.console.read_text() if host.console.exists() else ""
    return f"its console said:\n{console[-2000:] or '(nothing)'}"
