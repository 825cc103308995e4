"""Turns requests for units into systemd's jobs over D-Bus, and waits for their end (org.freedesktop.systemd1(5))."""

import asyncio
from collections.abc import Sequence
from typing import Any

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

from hostmesh.errors import HostmeshError

_SYSTEMD = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER, _UNIT = f"{_SYSTEMD}.Manager", f"{_SYSTEMD}.Unit"
_JOB_SECONDS = 90.0  # systemd's own DefaultTimeoutStartSec
_NO_SUCH_UNIT = f"{_SYSTEMD}.NoSuchUnit"


class SystemdError(HostmeshError):
    """systemd didn't do what it was asked, or didn't answer. ``kind``: the D-Bus error's name, if it was one."""

    def __init__(self, message: str, hint: str = "", kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class Systemd:
    """The door to units. address: of the system bus, else the usual one. Connects when asked, again after a loss."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._bus: MessageBus | None = None
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._ended: dict[str, str] = {}
        self._connecting = asyncio.Lock()

    async def is_active(self, unit: str) -> bool:
        """Is it active (or reloading)? False for a unit that systemd has not loaded."""
        return await self._property(unit, "ActiveState", "inactive") in ("active", "reloading")

    async def active_states(self, units: Sequence[str]) -> dict[str, str]:
        """ActiveState by unit, asked at once; ``inactive`` for those without a file."""
        (found,) = await self._call(_MANAGER, "ListUnitsByNames", "as", list(units)) if units else ([],)
        return {str(entry[0]): str(entry[3]) for entry in found}

    async def needs_reload(self, units: Sequence[str]) -> bool:
        """Did the files of any of these (loaded) units change since systemd read them?"""
        return any(await asyncio.gather(*(self._property(unit, "NeedDaemonReload", False) for unit in units)))

    async def control_group(self, unit: str) -> str:
        """Its cgroup's path from the root, with a leading slash; empty while it has none."""
        kind = {"service": "Service", "socket": "Socket", "slice": "Slice"}.get(unit.rsplit(".", 1)[-1], "Scope")
        return str(await self._property(unit, "ControlGroup", "", f"{_SYSTEMD}.{kind}"))

    async def triggered_by(self, unit: str) -> tuple[str, ...]:
        """The ``.socket`` units that start this one, those that are enabled or running."""
        found = []
        for name in await self._property(unit, "TriggeredBy", []):
            if name.endswith(".socket") and (
                await self.is_active(name) or await self._property(name, "UnitFileState", "") == "enabled"
            ):
                found.append(name)
        return tuple(sorted(found))

    async def start(self, unit: str) -> None:
        """Start it and wait for the job's end. Raises `SystemdError` unless the result is ``done``."""
        await self._job("StartUnit", unit)

    async def stop(self, unit: str) -> None:
        """Stop it and wait for the job's end."""
        await self._job("StopUnit", unit)

    async def restart(self, unit: str) -> None:
        """Restart it and wait for the job's end."""
        await self._job("RestartUnit", unit)

    async def reload(self) -> None:
        """daemon-reload; returns when systemd has read its files."""
        await self._call(_MANAGER, "Reload")

    async def close(self) -> None:
        """Leave the bus."""
        if self._bus is not None and self._bus.connected:
            self._bus.disconnect()
        self._bus = None

    async def _job(self, member: str, unit: str) -> None:
        (path,) = await self._call(_MANAGER, member, "ss", unit, "replace")
        result = self._ended.pop(path, None)
        if result is None:
            future = self._jobs.setdefault(path, asyncio.get_running_loop().create_future())
            try:
                result = await asyncio.wait_for(future, _JOB_SECONDS)
            except TimeoutError as error:
                raise SystemdError(f"{member} {unit}: no end in time", f"systemctl status {unit}") from error
            finally:
                self._jobs.pop(path, None)
        if result not in ("done", "skipped"):
            raise SystemdError(f"{member} {unit}: {result}", f"systemctl status {unit}; journalctl -u {unit}")

    async def _property(self, unit: str, name: str, missing: Any, interface: str = _UNIT) -> Any:  # noqa: ANN401 D-Bus
        # LoadUnit also knows units that nothing has started yet; one without a file has no state worth asking.
        try:
            (path,) = await self._call(_MANAGER, "LoadUnit", "s", unit)
            reply = await self._call("org.freedesktop.DBus.Properties", "Get", "ss", interface, name, path=path)
        except SystemdError as error:
            if error.kind != _NO_SUCH_UNIT:
                raise
            return missing
        return reply[0].value

    async def _call(
        self, interface: str, member: str, signature: str = "", *body: object, path: str = _PATH
    ) -> list[Any]:
        bus = await self._connected()
        reply = await bus.call(_message(_SYSTEMD, path, interface, member, signature, list(body)))
        if reply is None or reply.message_type is MessageType.ERROR:
            kind = (reply.error_name or "") if reply else ""
            text = str(reply.body[0]) if reply and reply.body else kind
            raise SystemdError(f"systemd, {member} {' '.join(map(str, body))}: {text}", kind=kind)
        return list(reply.body)

    async def _connected(self) -> MessageBus:
        async with self._connecting:
            if self._bus is None or not self._bus.connected:
                self._bus = await self._connect()
            return self._bus

    async def _connect(self) -> MessageBus:
        self._ended.clear()
        try:
            bus = await MessageBus(bus_address=self._address, bus_type=BusType.SYSTEM).connect()
        except (OSError, EOFError) as error:
            raise SystemdError(f"the system bus does not answer: {error}", "is dbus.service running?") from error
        bus.add_message_handler(self._on_message)
        rule = f"type='signal',sender='{_SYSTEMD}',path='{_PATH}',interface='{_MANAGER}',member='JobRemoved'"
        for destination, at, interface, member, signature, body in (
            ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", [rule]),
            (_SYSTEMD, _PATH, _MANAGER, "Subscribe", "", []),
        ):
            reply = await bus.call(_message(destination, at, interface, member, signature, body))
            if reply is None or reply.message_type is MessageType.ERROR:
                bus.disconnect()
                raise SystemdError(f"the system bus refused {member}")
        return bus

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL or message.member != "JobRemoved":
            return
        path, result = message.body[1], message.body[3]
        future = self._jobs.get(path)
        if future is not None and not future.done():
            future.set_result(result)
        elif future is None:
            # Its end may come before the reply that names it; jobs of others end here too, so keep only the last few.
            self._ended[path] = result
            while len(self._ended) > 64:
                self._ended.pop(next(iter(self._ended)))


def _message(  # noqa: PLR0917 as D-Bus has them
    destination: str, path: str, interface: str, member: str, signature: str, body: list[Any]
) -> Message:
    return Message(
        destination=destination, path=path, interface=interface, member=member, signature=signature, body=body
    )
