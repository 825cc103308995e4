"""Turns a running host into facts and into what is there: the two things that `compile` and `diff` are told of it."""

import asyncio
import pwd
from collections.abc import Sequence
from dataclasses import replace

from hostmesh.apply.cgroups import Cgroups
from hostmesh.apply.files import Files
from hostmesh.apply.netlink import Netlink
from hostmesh.apply.nft import Nft
from hostmesh.apply.sysctl import Sysctls
from hostmesh.apply.systemd import Systemd
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.observe.listeners import listeners
from hostmesh.plan.compile import Plan
from hostmesh.plan.diff import Observed
from hostmesh.plan.dropins import FILE, HEADER
from hostmesh.plan.facts import HostFacts, UnitFacts
from hostmesh.policy.model import Policy
from hostmesh.policy.settings import Settings

PROXY_USER = "hostmesh-proxy"


class HostObserver:
    """Looks through the doors, changes nothing."""

    def __init__(
        self,
        settings: Settings,
        *,
        nft: Nft,
        netlink: Netlink,
        sysctls: Sysctls,
        systemd: Systemd,
        files: Files,
        cgroups: Cgroups,
    ) -> None:
        self._settings = settings
        self._nft, self._netlink, self._sysctls = nft, netlink, sysctls
        self._systemd, self._files, self._cgroups = systemd, files, cgroups

    async def facts(self, policies: Sequence[Policy], numbers: dict[UnitName, int]) -> HostFacts:
        """The host, and the policies' units as they are now."""
        units = sorted({policy.unit for policy in policies})
        states = await self._systemd.active_states([unit.full for unit in units])
        sockets = await asyncio.gather(*(self._systemd.triggered_by(unit.full) for unit in units))
        listening = listeners()
        facts = {}
        for unit, names in zip(units, sockets, strict=True):
            ids = self._cgroups.ids(unit.cgroup)
            facts[unit] = UnitFacts(
                unit,
                active=states.get(unit.full) in ("active", "reloading"),
                cgroup_id=self._cgroups.id(unit.cgroup),
                listens=frozenset().union(*(listening.get(number, frozenset()) for number in ids)),
                sockets=tuple(UnitName(name) for name in names),
            )
        return HostFacts(self._settings.host, await self._netlink.addresses(), facts, numbers, _proxy_uid())

    async def observed(self, plan: Plan, proxy_revision: str | None) -> Observed:
        """What is there of all that is ours. proxy_revision: as `Observed` has it."""
        return await self.in_kernel(await self.beside_kernel(plan, proxy_revision))

    async def beside_kernel(self, plan: Plan, proxy_revision: str | None) -> Observed:
        """What systemd and files have of ours: the slow part. Table, rules and routes are not looked at."""
        there = self._cgroups.slices()
        states = await self._systemd.active_states(sorted(there | set(plan.slices)))
        active = {name for name, state in states.items() if state == "active"}
        # One that systemd calls active without a cgroup (somebody removed it) is started anew.
        slices = active & there
        loaded = {path.split("/")[-2].removesuffix(".d") for path in plan.files}
        return replace(
            as_planned(plan),
            sysctls={key: self._sysctls.get(key) for key in plan.sysctls},
            before=self._sysctls.before(),
            slices=frozenset(slices),
            idle=frozenset(name for name in slices if not self._cgroups.populated(f"mesh.slice/{name}")),
            files=self._dropins(),
            reload=await self._systemd.needs_reload(sorted(loaded)),
            proxy_revision=proxy_revision,
        )

    async def in_kernel(self, beside: Observed) -> Observed:
        """The same with table, rules and routes as they are: only the kernel is asked."""
        return replace(
            beside, table=self._nft.state(), rules=await self._netlink.rules(), routes=await self._netlink.routes()
        )

    async def unit_listeners(self, unit: str) -> frozenset[tuple[str, int]]:
        """(address, port) on which a unit listens now, meshed or not: also in the cgroups of its sockets."""
        listening = listeners()
        found: frozenset[tuple[str, int]] = frozenset()
        for name in (unit, *await self._systemd.triggered_by(unit)):
            group = await self._systemd.control_group(name)
            for number in self._cgroups.ids(group) if group.strip("/") else ():
                found |= listening.get(number, frozenset())
        return frozenset(found)

    def _dropins(self) -> dict[str, str]:
        found = self._files.find(self._settings.paths.systemd, f"*.d/{FILE}")
        return {path: text for path, text in found.items() if text.startswith(HEADER)}


def as_planned(plan: Plan) -> Observed:
    """As if all that is outside the kernel were as planned, and nothing in it."""
    return Observed(
        table=None,
        sysctls=plan.sysctls,
        before={},
        rules=frozenset(),
        routes=frozenset(),
        slices=frozenset(plan.slices),
        idle=frozenset(),
        files=plan.files,
        reload=False,
        proxy_revision=None,
    )


def _proxy_uid() -> int:
    try:
        return pwd.getpwnam(PROXY_USER).pw_uid
    except KeyError:
        hint = "packaging/install makes it (systemd-sysusers)"
        raise HostmeshError(f"the proxy's user {PROXY_USER} is not there", hint) from None
