"""Turns a few words into the plans that kernel tests apply: one unit, number 7, on 8080."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hostmesh.apply.executor import Doors, apply
from hostmesh.apply.files import Files
from hostmesh.apply.netlink import Netlink
from hostmesh.apply.nft import Nft
from hostmesh.apply.sysctl import Sysctls
from hostmesh.errors import Place
from hostmesh.names import UnitName
from hostmesh.plan.compile import Plan, compile_plan
from hostmesh.plan.diff import Observed, diff
from hostmesh.plan.facts import HostFacts
from hostmesh.policy.model import Mode, Observe, OutboundRule, PlaintextRule, Policy, Port, Traffic
from hostmesh.policy.settings import Settings

VIPS = ("240.240.0.0/16", "fd00:240::/112")
SETTINGS = Settings(host="h1")
UNIT = UnitName("web.service")
SLICE = UNIT.cgroup
NUMBER = 7
OUTBOUND = SETTINGS.marks.outbound | NUMBER
INBOUND = SETTINGS.marks.inbound | NUMBER


def policy(
    unit: UnitName = UNIT,
    port: int = 8080,
    plaintext: Sequence[str] = (),
    outbound: Sequence[tuple[str, int]] | None = None,
    mode: Mode = Mode.ENFORCE,
) -> Policy:
    """outbound: (network, port) of ``[outbound] allow``."""
    place = Place(f"{unit}.toml", 1)
    return Policy(
        place=place, unit=unit, service=unit.stem, ports=(Port(place, port),), mode=mode, inbound_place=place,
        allow=(), deny=(),
        plaintext=(PlaintextRule(Place(f"{unit}.toml", 9), tuple(plaintext), (port,)),) if plaintext else (),
        traffic=Traffic(),
        outbound=None if outbound is None else tuple(OutboundRule(place, network=n, port=p) for n, p in outbound),
        observe=Observe(),
    )  # fmt: skip


def plan(*policies: Policy, addresses: tuple[str, ...] = ("198.18.7.1", "2001:2:7::1"), proxy_uid: int = 0) -> Plan:
    """The plan of a host with these policies, numbered from 7; slices are made by the test, not by systemd.

    proxy_uid: tests deliver as root."""
    numbers = {item.unit: NUMBER + index for index, item in enumerate(policies)}
    made = compile_plan(SETTINGS, policies, HostFacts("h1", addresses, {}, numbers, proxy_uid), (), (), VIPS)
    return replace(made, slices=(), files={}, snapshot=None)


class Bench:
    """The real doors of the world; systemd and the proxy are not in it, and the plans ask nothing of them."""

    def __init__(self, state: Path) -> None:
        self.nft, self.netlink, files = Nft(), Netlink(), Files()
        kept = str(state / "sysctls.json")
        self.sysctls = Sysctls(lambda: files.read(kept), lambda text: files.write(kept, text))
        self.doors = Doors(self.nft, self.netlink, self.sysctls, None, files, None)  # type: ignore[arg-type]

    async def observe(self, wanted: Plan) -> Observed:
        return Observed(
            table=self.nft.state(),
            sysctls={key: self.sysctls.get(key) for key in wanted.sysctls},
            before=self.sysctls.before(),
            rules=await self.netlink.rules(),
            routes=await self.netlink.routes(),
            slices=frozenset(),
            idle=frozenset(),
            files={},
            reload=False,
            proxy_revision=None,
        )

    def apply(self, wanted: Plan, stop_after: int | None = None) -> list[str]:
        """Observe, diff, apply; the names of what was done. stop_after: as if killed after that many steps."""
        done: list[str] = []

        async def go() -> None:
            changes = diff(wanted, await self.observe(wanted))
            await apply(changes[:stop_after], self.doors, done.append)

        asyncio.run(go())
        return done
