"""Decides whether a unit can be meshed by the cgroup door, and what it could do to step round. Pure."""

from dataclasses import dataclass

from hostmesh.cli.unit_facts import UnitFact

_CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW", 19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN", 39: "CAP_BPF"}
"""Bits of linux/capability.h that open a way round; CAP_NET_RAW sends past the ruleset's mark, the guard drops it."""


_OURS = ("hostmeshd.service", "hostmesh-proxy.service", "hostmesh-controller.service", "hostmesh-guard.service")
_NEEDED_BEFORE = ("dbus.service", "dbus-broker.service")
"""The agent needs the bus to start; a bus that waits for the agent would never be there."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What is the matter, and what would mend it: lines of a drop-in, or a sentence."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def objections(fact: UnitFact) -> tuple[Remark, ...]:
    """Why this unit cannot be meshed; empty if it can."""
    unknown = _unknown(fact) or _not_a_service(fact)
    if unknown:
        return (unknown,)
    unit = fact.unit
    found = []
    if fact.slice not in ("", "system.slice", implicit_slice(unit.stem), unit.slice):
        what = f"it has a slice of its own, {fact.slice}, whose limits would be lost"
        found.append(Remark(what, "take Slice= out of the unit, and give its limits to the unit itself"))
    if fact.private_network:
        found.append(Remark("PrivateNetwork=yes keeps it from any network", "take PrivateNetwork= out"))
    if fact.network_namespace:
        what = f"it lives in a network namespace of its own, {fact.network_namespace}"
        found.append(Remark(what, "take NetworkNamespacePath= out; the netns door is not in this version"))
    return tuple(found)


def _unknown(fact: UnitFact) -> Remark | None:
    if fact.load_state == "masked":
        return Remark("the unit is masked", f"systemctl unmask {fact.unit}")
    if fact.load_state == "template":
        return Remark("it is a template, not a unit", f"name an instance: hostmesh enable {fact.unit.stem}NAME")
    if fact.load_state != "loaded":
        words = f"did you mean {' or '.join(fact.similar)}?" if fact.similar else "units of users cannot be meshed"
        return Remark(f"systemd does not know this unit ({fact.load_state})", words)
    return None


def _not_a_service(fact: UnitFact) -> Remark | None:
    unit = fact.unit
    if fact.alias_of:
        return Remark(f"{unit} is another name of {fact.alias_of}", f"hostmesh enable {fact.alias_of}")
    if not unit.full.endswith(".service"):
        return Remark(f"only services can be meshed, not a {unit.full.rpartition('.')[2]}", "name its service")
    if unit.full in _OURS:
        return Remark("it is a part of hostmesh itself", "mesh the services that it shall serve")
    if unit.full in _NEEDED_BEFORE or not fact.default_dependencies:
        what = "it starts before hostmesh can, and would have to wait for it"
        return Remark(what, "leave it out: it belongs to the host's own start")
    return None


def loopholes(fact: UnitFact) -> tuple[Remark, ...]:
    """What the unit is allowed that would let it step round the mesh, with the settings that close it."""
    if fact.load_state != "loaded":
        return ()
    root = fact.user in ("", "root", "0") and not fact.dynamic_user
    held = fact.capabilities if root else fact.ambient & fact.capabilities
    names = [name for bit, name in sorted(_CAPABILITIES.items()) if held >> bit & 1]
    found = []
    if names:
        what = f"it may hold {', '.join(names)}, and could change the network or become another unit"
        found.append(Remark(what, f"CapabilityBoundingSet=~{' '.join(names)}"))
    if root and not fact.protect_control_groups:
        what = "it runs as root and can write to the cgroup tree, and so move into another unit's slice"
        found.append(Remark(what, "ProtectControlGroups=yes"))
    return tuple(found)


def implicit_slice(stem: str) -> str:
    """The slice that systemd gives to instances of a template, ``system-PREFIX.slice`` (systemd.special(7))."""
    prefix, at, _ = stem.partition("@")
    return f"system-{prefix.replace('-', chr(92) + 'x2d')}.slice" if at else "system.slice"
