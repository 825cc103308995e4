"""Turns systemd's D-Bus signals into what its units really are (org.freedesktop.systemd1(5)).

Law: a signal is a hint, never a fact: systemd sends stale and double ones. Each makes us read the unit once more, and
the last reading counts; the signal of the finished job comes last, so the last reading is of the end state.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from dbus_fast import Message

from hostmesh.apply.bus import MANAGER, NO_SUCH_UNIT, PATH, PROPERTIES, SERVICE, UNIT, Bus, BusError
from hostmesh.names import BadName, UnitName

_NAME_AT = {"UnitNew": 0, "UnitRemoved": 0, "JobNew": 2, "JobRemoved": 2}
_SIGNALS = (
    f"path='{PATH}',interface='{MANAGER}'",
    f"path_namespace='{PATH}/unit',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{UNIT}'",
)
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class UnitState:
    """A unit as systemd says it is. active_state: empty when systemd has never heard of the unit.

    control_group: path from the root of the cgroup tree, empty while nothing runs. main_pid: 0 for none. slice: where
    its processes go when it starts next.
    """

    active_state: str = ""
    sub_state: str = ""
    control_group: str = ""
    main_pid: int = 0
    slice: str = ""

    @property
    def active(self) -> bool:
        """Ready to serve: for ``Type=notify`` this is the unit's own READY=1."""
        return self.active_state in ("active", "reloading")

    def is_in_slice(self, unit: UnitName) -> bool:
        """Are the unit's processes in its mesh slice?"""
        return f"/{unit.cgroup}/" in f"{self.control_group}/"

    def outside(self, unit: UnitName) -> str:
        """Why processes of the active unit are not in its mesh slice, and the remedy; empty when none are outside."""
        if not self.active or not self.control_group or self.is_in_slice(unit):
            return ""
        if self.slice == unit.slice:
            return f"its processes are from before: systemctl restart {unit.full}"
        remedy = f"remove that setting (systemctl cat {unit.full} shows where), daemon-reload, restart it"
        return f"its Slice= is {self.slice}: {remedy}"


def object_path(unit: UnitName) -> str:
    """The unit's object: every byte but letters and (not leading) digits as ``_HH`` (sd_bus_path_encode(3))."""
    out = []
    for index, byte in enumerate(unit.full.encode()):
        char = chr(byte)
        plain = char.isascii() and (char.isalpha() or (char.isdigit() and index))
        out.append(char if plain else f"_{byte:02x}")
    return f"{PATH}/unit/{''.join(out)}"


class UnitFollower:
    """Keeps `states` of the watched units true. ``changed`` is called with a unit whose state became another."""

    def __init__(self, changed: Callable[[UnitName], None], address: str | None = None) -> None:
        self.states: dict[UnitName, UnitState] = {}
        self.connected = asyncio.Event()
        self._changed = changed
        self._address = address
        self._bus: Bus | None = None
        self._paths: dict[str, UnitName] = {}
        self._dirty: set[UnitName] = set()
        self._wake = asyncio.Event()

    async def watch(self, units: frozenset[UnitName]) -> None:
        """Follow exactly these units; returns when the state of the new ones is known. Raises `BusError`."""
        new = units - self.states.keys()
        self.states = {unit: state for unit, state in self.states.items() if unit in units}
        self._paths = {object_path(unit): unit for unit in units}
        for unit in new:
            self.states[unit] = await self._read(unit)

    async def look(self, units: frozenset[UnitName]) -> None:
        """Read these anew, ahead of systemd's signals. Raises `BusError`."""
        for unit in units & self.states.keys():
            await self._refresh(unit)

    async def run(self) -> None:
        """Follow until cancelled; a lost bus is taken up again, with everything read anew."""
        while True:
            try:
                await self._connect()
                await self._follow()
            except BusError:
                pass  # whoever needs the bus now is told, and tells it (`watch`)
            finally:
                self._disconnect()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _connect(self) -> None:
        self._bus = Bus(self._address)
        await self._bus.connect()
        await self._bus.follow(self._on_signal, *_SIGNALS)
        self._mark(set(self._paths.values()))
        self.connected.set()

    def _disconnect(self) -> None:
        self.connected.clear()
        if self._bus is not None:
            self._bus.close()
        self._bus = None

    async def _follow(self) -> None:
        assert self._bus is not None
        gone = asyncio.ensure_future(self._bus.gone())
        try:
            while not gone.done():
                wake = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait({gone, wake}, return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                self._wake.clear()
                while self._dirty and not gone.done():
                    await self._refresh(self._dirty.pop())
        finally:
            gone.cancel()

    async def _refresh(self, unit: UnitName) -> None:
        try:
            state = await self._read(unit)
        except BaseException:
            self._dirty.add(unit)
            raise
        if unit in self.states and self.states[unit] != state:
            self.states[unit] = state
            self._changed(unit)

    def _mark(self, units: set[UnitName]) -> None:
        self._dirty |= units
        self._wake.set()

    def _on_signal(self, message: Message) -> None:
        if message.interface == PROPERTIES:
            unit = self._paths.get(message.path or "")
            if unit:
                self._mark({unit})
        elif message.interface == MANAGER:
            if message.member in _NAME_AT:
                self._mark_named(message.body[_NAME_AT[message.member]])
            elif message.member == "Reloading" and message.body == [False]:
                self._mark(set(self._paths.values()))

    def _mark_named(self, name: str) -> None:
        try:
            unit = UnitName(name)
        except BadName:
            return  # of a kind that cannot be meshed: a mount, a device
        if unit in self._paths.values():
            self._mark({unit})

    async def _read(self, unit: UnitName) -> UnitState:
        bus = self._bus
        if bus is None:
            raise BusError("no connection to the system bus", "is dbus.service running?")
        # GetUnit loads nothing; reading the object of an unloaded unit would load it, and that is signalled.
        try:
            (path,) = await bus.call("GetUnit", "s", unit.full)
        except BusError as error:
            if error.kind != NO_SUCH_UNIT:
                raise
            return UnitState(active_state="inactive" if await _has_file(bus, unit) else "")
        properties = await bus.get_all(path, UNIT)
        service = await bus.get_all(path, SERVICE) if unit.full.endswith(".service") else {}
        return UnitState(
            properties["ActiveState"],
            properties["SubState"],
            service.get("ControlGroup", ""),
            service.get("MainPID", 0),
            service.get("Slice", ""),
        )


async def _has_file(bus: Bus, unit: UnitName) -> bool:
    try:
        await bus.call("GetUnitFileState", "s", unit.full)
    except BusError as error:
        if error.kind in (NO_SUCH_UNIT, "org.freedesktop.DBus.Error.FileNotFound"):
            return False
        raise
    return True
