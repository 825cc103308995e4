"""Turns units without a good SVID into units with one: asks the proxy for a request, the controller for a signature.

The key never leaves the proxy. A unit that can't get its SVID now keeps the one it has, and is tried again.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from hostmesh.agent.lifetimes import Lifetimes
from hostmesh.agent.mesh import Mesh
from hostmesh.agent.proxy_link import ProxyLink
from hostmesh.agent.reports import Reports
from hostmesh.apply.clock import boottime, wall
from hostmesh.errors import HostmeshError
from hostmesh.wire.proxy_control import SvidStatus
from hostmesh.wire.snapshot import Snapshot

_LOOK_EVERY = 30.0
_AT_ONCE = 8
_RETRY_FIRST, _RETRY_MOST = 0.25, 30.0
_DOUBLINGS = 10  # a float ends at 1024 of them: half a day without a controller


@dataclass(slots=True)
class _Trouble:
    reason: str
    failures: int
    not_before: float


class Identities:
    """Keeps every unit of the snapshot in an SVID. ``changed`` is called when the proxy got a new one."""

    def __init__(self, proxy: ProxyLink, mesh: Mesh, reports: Reports, changed: Callable[[], None]) -> None:
        self._proxy, self._mesh, self._reports, self._changed = proxy, mesh, reports, changed
        self._lifetimes = Lifetimes(random.SystemRandom())
        self._wanted: dict[str, str] = {}
        self._trouble: dict[str, _Trouble] = {}
        self._look = asyncio.Event()
        self.svids: dict[str, SvidStatus] = {}

    def want(self, snapshot: Snapshot | None) -> None:
        """The units of the snapshot that is in force, each with its identity."""
        wanted = {unit.unit: unit.spiffe_id for unit in snapshot.units} if snapshot else {}
        if wanted != self._wanted:
            self._wanted = wanted
            self._look.set()

    def look(self) -> None:
        """Try again now, also what failed: something changed (proxy or controller came back, a person asks)."""
        for trouble in self._trouble.values():
            trouble.not_before = 0.0
        self._look.set()

    def reason(self, unit: str) -> str:
        """Why the unit has no good SVID; empty when it has, or when it wasn't tried yet."""
        trouble = self._trouble.get(unit)
        return trouble.reason if trouble else ""

    async def run(self) -> None:
        """Keep at it until cancelled."""
        while True:
            try:
                pause = await self._round()
            except HostmeshError as error:  # the proxy went away: its return calls `look`
                self._reports.state("identities", str(error))
                pause = _LOOK_EVERY
            try:
                await asyncio.wait_for(self._look.wait(), pause)
            except TimeoutError:
                continue

    async def _round(self) -> float:
        """Renew what is due; seconds until the next round is needed."""
        self._look.clear()
        if not self._proxy.connected or not self._mesh.joined:
            return _LOOK_EVERY
        due = await self._due()
        now = boottime()
        ready = [unit for unit in due if unit not in self._trouble or self._trouble[unit].not_before <= now]
        limit = asyncio.Semaphore(_AT_ONCE)
        done = await asyncio.gather(*(self._renew(unit, limit) for unit in ready))
        self._trouble = {unit: trouble for unit, trouble in self._trouble.items() if unit in due}
        if any(done):
            await self._due()
            self._reports.state("identities", "")
            self._changed()
        later = [trouble.not_before for trouble in self._trouble.values()]
        return min([_LOOK_EVERY, *(max(at - boottime(), 0.05) for at in later)])

    async def _due(self) -> list[str]:
        there = (await self._proxy.status()).svids
        self.svids = {svid.unit: svid for svid in there}
        counting = [svid for svid in there if not self._mesh.is_revoked(svid)]
        return self._lifetimes.due(self._wanted, counting, wall(), boottime())

    async def _renew(self, unit: str, limit: asyncio.Semaphore) -> bool:
        async with limit:
            try:
                chain = await self._mesh.sign(unit, await self._proxy.csr(unit))
                await self._proxy.set_svid(unit, chain)
            except HostmeshError as error:
                before = self._trouble.get(unit)
                failures = before.failures + 1 if before else 1
                pause = min(_RETRY_FIRST * 2.0 ** min(failures, _DOUBLINGS), _RETRY_MOST)
                self._trouble[unit] = _Trouble(str(error), failures, boottime() + pause)
                self._reports.state(f"identity of {unit}", str(error))
                return False
        self._trouble.pop(unit, None)
        self._reports.state(f"identity of {unit}", "")
        return True
