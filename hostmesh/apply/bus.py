"""Turns method calls into systemd's answers on the system bus, and what the bus tells into calls of ours.

The one wrapper of D-Bus (org.freedesktop.systemd1(5)): whatever goes wrong with the bus is a `BusError`.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, DBusError, InvalidAddressError

from hostmesh.errors import HostmeshError

SYSTEMD = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER, UNIT, SERVICE = f"{SYSTEMD}.Manager", f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"
NO_SUCH_UNIT = f"{SYSTEMD}.NoSuchUnit"
_DBUS, _DBUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_REMEDY = "is dbus.service running?"
_AT_ONCE = 64  # calls: dbus_fast takes a socket buffer that is full for the connection's end
_LOST = (OSError, EOFError, DBusError, AuthError, InvalidAddressError)


class BusError(HostmeshError):
    """systemd refused, or there was no answer. ``kind``: the D-Bus error's name, empty if it was none."""

    def __init__(self, message: str, hint: str = "", kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class Bus:
    """One connection. address: of the bus, else the system's. fds: file descriptors may be passed."""

    def __init__(self, address: str | None = None, *, fds: bool = False) -> None:
        self._bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM, negotiate_unix_fd=fds)
        self._end: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def connect(self) -> None:
        """Connect, once. Raises `BusError`."""
        try:
            await self._bus.connect()
        except _LOST as error:
            raise BusError(f"the system bus does not answer: {error}", _REMEDY) from error
        self._end = asyncio.ensure_future(self._wait_for_end())

    @property
    def connected(self) -> bool:
        """Whether calls have a chance."""
        return bool(self._bus.connected)

    async def gone(self) -> None:
        """Returns when the connection has ended, by whomever."""
        if self._end is not None:
            await asyncio.wait({self._end})  # whose cancellation is not the end

    async def _wait_for_end(self) -> None:
        with contextlib.suppress(*_LOST):
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Leave the bus."""
        if self._bus.connected:
            self._bus.disconnect()

    async def call(
        self,
        member: str,
        signature: str = "",
        *body: object,
        path: str = PATH,
        interface: str = MANAGER,
        to: str = SYSTEMD,
        fds: tuple[int, ...] = (),
    ) -> list[Any]:
        """One method call; raises `BusError`."""
        message = Message(
            destination=to, path=path, interface=interface, member=member,
            signature=signature, body=list(body), unix_fds=list(fds),
        )  # fmt: skip
        try:
            async with self._places:
                if not self._bus.connected:
                    raise BusError("no connection to the system bus", _REMEDY)
                reply = await self._bus.call(message)
        except _LOST as error:
            raise BusError(f"systemd, {member}: the system bus went away: {error}", _REMEDY) from error
        if reply is None:
            raise BusError(f"systemd, {member}: no answer", _REMEDY)
        if reply.message_type is MessageType.ERROR:
            kind = reply.error_name or ""
            raise BusError(f"systemd, {member}: {reply.body[0] if reply.body else kind}", kind=kind)
        return list(reply.body)

    async def get(self, path: str, interface: str, name: str) -> Any:  # noqa: ANN401 D-Bus
        """One property of an object, a plain value."""
        (found,) = await self.call("Get", "ss", interface, name, path=path, interface=PROPERTIES)
        return found.value

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of one interface of an object, plain values."""
        (found,) = await self.call("GetAll", "s", interface, path=path, interface=PROPERTIES)
        return {name: variant.value for name, variant in found.items()}

    async def follow(self, heard: Callable[[Message], None], *rules: str) -> None:
        """Have ``heard`` called with every signal of systemd that fits one of the rules (``path='…',member='…'``)."""
        self._bus.add_message_handler(lambda message: _signal(message, heard))
        for rule in rules:
            match = f"type='signal',sender='{SYSTEMD}',{rule}"
            await self.call("AddMatch", "s", match, path=_DBUS_PATH, interface=_DBUS, to=_DBUS)
        await self.call("Subscribe")


def _signal(message: Message, heard: Callable[[Message], None]) -> None:
    if message.message_type is MessageType.SIGNAL:
        heard(message)
