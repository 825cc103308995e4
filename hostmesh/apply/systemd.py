"""Turns requests for units into systemd's jobs over D-Bus, and waits for their end (org.freedesktop.systemd1(5))."""

import asyncio
from collections.abc import Sequence
from typing import Any

from dbus_fast import Message

from hostmesh.apply.bus import MANAGER, NO_SUCH_UNIT, PATH, SYSTEMD, UNIT, Bus, BusError
from hostmesh.errors import HostmeshError

_JOB_SECONDS = 90.0  # systemd's own DefaultTimeoutStartSec
_JOBS = f"path='{PATH}',interface='{MANAGER}',member='JobRemoved'"


class JobFailed(HostmeshError):
    """systemd took the job, and it did not end well."""


class Systemd:
    """The door to units. address: of the system bus, else the usual one. Connects when asked, again after a loss."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._bus: Bus | None = None
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._ended: dict[str, str] = {}
        self._connecting = asyncio.Lock()

    async def is_active(self, unit: str) -> bool:
        """Is it active (or reloading)? False for a unit that systemd has not loaded."""
        return await self._property(unit, "ActiveState", "inactive") in ("active", "reloading")

    async def active_states(self, units: Sequence[str]) -> dict[str, str]:
        """ActiveState by unit, asked at once; ``inactive`` for those without a file."""
        (found,) = await self._call("ListUnitsByNames", "as", list(units)) if units else ([],)
        return {str(entry[0]): str(entry[3]) for entry in found}

    async def needs_reload(self, units: Sequence[str]) -> bool:
        """Did the files of any of these (loaded) units change since systemd read them?"""
        return any(await asyncio.gather(*(self._property(unit, "NeedDaemonReload", False) for unit in units)))

    async def control_group(self, unit: str) -> str:
        """Its cgroup's path from the root, with a leading slash; empty while it has none."""
        kind = {"service": "Service", "socket": "Socket", "slice": "Slice"}.get(unit.rsplit(".", 1)[-1], "Scope")
        return str(await self._property(unit, "ControlGroup", "", f"{SYSTEMD}.{kind}"))

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
        """Start it and wait for the job's end. Raises `JobFailed` unless the result is ``done``."""
        await self._job("StartUnit", unit)

    async def stop(self, unit: str) -> None:
        """Stop it and wait for the job's end."""
        await self._job("StopUnit", unit)

    async def restart(self, unit: str) -> None:
        """Restart it and wait for the job's end."""
        await self._job("RestartUnit", unit)

    async def reload(self) -> None:
        """daemon-reload; returns when systemd has read its files."""
        await self._call("Reload")

    async def close(self) -> None:
        """Leave the bus."""
        if self._bus is not None:
            self._bus.close()
        self._bus = None

    async def _job(self, member: str, unit: str) -> None:
        bus = await self._connected()
        (path,) = await bus.call(member, "ss", unit, "replace")
        result = self._ended.pop(path, None)
        if result is None:
            result = await self._end_of(bus, path, f"{member} {unit}", f"systemctl status {unit}")
        if result not in ("done", "skipped"):
            raise JobFailed(f"{member} {unit}: {result}", f"systemctl status {unit}; journalctl -u {unit}")

    async def _end_of(self, bus: Bus, path: str, what: str, hint: str) -> str:
        future = self._jobs.setdefault(path, asyncio.get_running_loop().create_future())
        gone = asyncio.ensure_future(bus.gone())  # nobody would tell of the end
        try:
            ends: set[asyncio.Future[Any]] = {future, gone}
            await asyncio.wait(ends, timeout=_JOB_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if gone.done():
                raise BusError(f"{what}: the system bus went away before the job's end", hint)
            raise JobFailed(f"{what}: no end in time", hint)
        finally:
            gone.cancel()
            self._jobs.pop(path, None)

    async def _property(self, unit: str, name: str, missing: Any, interface: str = UNIT) -> Any:  # noqa: ANN401 D-Bus
        # LoadUnit also knows units that nothing has started yet; one without a file has no state worth asking.
        bus = await self._connected()
        try:
            (path,) = await bus.call("LoadUnit", "s", unit)
            return await bus.get(path, interface, name)
        except BusError as error:
            if error.kind != NO_SUCH_UNIT:
                raise
            return missing

    async def _call(self, member: str, signature: str = "", *body: object) -> list[Any]:
        return await (await self._connected()).call(member, signature, *body)

    async def _connected(self) -> Bus:
        async with self._connecting:
            if self._bus is None or not self._bus.connected:
                self._ended.clear()
                bus = Bus(self._address)
                await bus.connect()
                try:
                    await bus.follow(self._on_job_removed, _JOBS)
                except BusError:
                    bus.close()
                    raise
                self._bus = bus
            return self._bus

    def _on_job_removed(self, message: Message) -> None:
        if message.member != "JobRemoved":
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
