"""Turns calls into answers of systemd on the system bus (org.freedesktop.systemd1(5)): all that is not a plain job."""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

from hostmesh.errors import HostmeshError

SYSTEMD = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER, UNIT, SERVICE = f"{SYSTEMD}.Manager", f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
_DBUS = "org.freedesktop.DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"

T = TypeVar("T")


class BusError(HostmeshError):
    """systemd refused, or did not answer. ``kind``: the D-Bus error's name, empty if it was none."""

    def __init__(self, message: str, hint: str = "", kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class Bus:
    """A connection to the system bus, for the length of an ``async with``. fds: file descriptors may be passed."""

    def __init__(self, *, fds: bool = False) -> None:
        self._bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=fds)

    async def __aenter__(self) -> "Bus":
        try:
            await self._bus.connect()
        except (OSError, EOFError) as error:
            raise BusError(f"the system bus does not answer: {error}", "is dbus.service running?") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        reply = await self._bus.call(message)
        if reply is None or reply.message_type is MessageType.ERROR:
            kind = (reply.error_name or "") if reply else ""
            text = str(reply.body[0]) if reply and reply.body else kind or "no answer"
            raise BusError(f"systemd, {member}: {text}", kind=kind)
        return list(reply.body)

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of one interface of an object, plain values."""
        (found,) = await self.call("GetAll", "s", interface, path=path, interface=PROPERTIES)
        return {name: variant.value for name, variant in found.items()}

    async def enable(self, *units: str) -> None:
        """Start with the machine from now on, as ``systemctl enable`` does."""
        await self.call("EnableUnitFiles", "asbb", list(units), False, True)

    async def disable(self, *units: str) -> None:
        """Not with the machine any more, as ``systemctl disable`` does."""
        await self.call("DisableUnitFiles", "asb", list(units), False)

    async def follow(self, path: str, heard: Callable[[], None]) -> None:
        """Have ``heard`` called whenever an object says that a property changed, and when it is gone."""
        watched = f"type='signal',sender='{SYSTEMD}',path='{path}',interface='{PROPERTIES}'"
        removed = f"type='signal',sender='{SYSTEMD}',path='{PATH}',interface='{MANAGER}',member='UnitRemoved'"
        for rule in (watched, removed):
            await self.call("AddMatch", "s", rule, path="/org/freedesktop/DBus", interface=_DBUS, to=_DBUS)
        await self.call("Subscribe")
        self._bus.add_message_handler(lambda message: heard() if message.message_type is MessageType.SIGNAL else None)


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's asynchronous part to its end."""
    return asyncio.run(work)
