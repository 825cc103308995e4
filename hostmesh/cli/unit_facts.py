"""Turns units into what `admission.py` has to know of them, read from systemd over D-Bus."""

import difflib
from dataclasses import dataclass

from hostmesh.apply.bus import SERVICE, UNIT, BusError
from hostmesh.cli.bus import Bus, finish
from hostmesh.names import UnitName


@dataclass(frozen=True, slots=True)
class UnitFact:
    """A unit as systemd would run it.

    load_state, active_state: systemd's words. capabilities: bits of the bounding set; ambient: of AmbientCapabilities.
    sockets: ``.socket`` units that start it and are enabled or running. similar: units that there are, where this one
    is not found. alias_of: the unit's own name, where ``unit`` is another one for it.
    default_dependencies: systemd's DefaultDependencies=; units of the early boot have none.
    """

    unit: UnitName
    load_state: str
    active_state: str = "inactive"
    slice: str = ""
    private_network: bool = False
    network_namespace: str = ""
    user: str = ""
    dynamic_user: bool = False
    capabilities: int = 0
    ambient: int = 0
    protect_control_groups: bool = False
    control_group: str = ""
    sockets: tuple[str, ...] = ()
    need_reload: bool = False
    similar: tuple[str, ...] = ()
    alias_of: str = ""
    default_dependencies: bool = True


def read(units: tuple[UnitName, ...]) -> dict[UnitName, UnitFact]:
    """The units' facts. Raises `BusError`."""

    async def all_of_them() -> dict[UnitName, UnitFact]:
        async with Bus() as bus:
            return {unit: await look(bus, unit) for unit in units}

    return finish(all_of_them())


async def look(bus: Bus, unit: UnitName) -> UnitFact:
    """One unit's facts; a unit that nothing has loaded yet is loaded, which starts nothing."""
    if unit.stem.endswith("@"):
        return UnitFact(unit, "template")
    (path,) = await bus.call("LoadUnit", "s", unit.full)
    base = await bus.get_all(path, UNIT)
    if base["LoadState"] != "loaded":
        return UnitFact(unit, base["LoadState"], similar=await _similar(bus, unit))
    service = await bus.get_all(path, SERVICE) if unit.full.endswith(".service") else {}
    return UnitFact(
        unit,
        base["LoadState"],
        base["ActiveState"],
        service.get("Slice", ""),
        service.get("PrivateNetwork", False),
        service.get("NetworkNamespacePath", ""),
        service.get("User", ""),
        service.get("DynamicUser", False),
        service.get("CapabilityBoundingSet", 0),
        service.get("AmbientCapabilities", 0),
        service.get("ProtectControlGroups", False),
        service.get("ControlGroup", ""),
        await _sockets(bus, base["TriggeredBy"]),
        base["NeedDaemonReload"],
        alias_of=base["Id"] if base["Id"] != unit.full else "",
        default_dependencies=base["DefaultDependencies"],
    )


async def _sockets(bus: Bus, triggers: list[str]) -> tuple[str, ...]:
    found = []
    for name in triggers:
        if not name.endswith(".socket"):
            continue
        (path,) = await bus.call("LoadUnit", "s", name)
        state = await bus.get_all(path, UNIT)
        if state["UnitFileState"] == "enabled" or state["ActiveState"] == "active":
            found.append(name)
    return tuple(sorted(found))


async def _similar(bus: Bus, unit: UnitName) -> tuple[str, ...]:
    (files,) = await bus.call("ListUnitFilesByPatterns", "asas", [], ["*.service"])
    names = [path.rpartition("/")[2] for path, _ in files]
    return tuple(difflib.get_close_matches(unit.full, names, n=3))


async def slice_of(bus: Bus, unit: str) -> str:
    """The slice in which a unit will run when it is started next; empty for one that systemd does not know."""
    interface = f"org.freedesktop.systemd1.{'Socket' if unit.endswith('.socket') else 'Service'}"
    try:
        (path,) = await bus.call("LoadUnit", "s", unit)
        return str(await bus.get(path, interface, "Slice"))
    except BusError as error:
        if error.kind.endswith((".NoSuchUnit", ".UnknownInterface")):
            return ""
        raise
