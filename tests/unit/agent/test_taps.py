"""Who looks is shown what is wanted, as far as there is room; while nobody does, nothing is asked of the proxy."""

import asyncio
from typing import cast

import pytest

from hostmesh.agent.proxy_link import ProxyLink
from hostmesh.agent.reports import Reports
from hostmesh.agent.taps import MAX_LOOKERS, MAX_WAITING, Looker, Taps
from hostmesh.apply.proxy import ProxyGone
from hostmesh.errors import HostmeshError
from hostmesh.wire.agent_control import Tap, Wanted
from hostmesh.wire.proxy_control import Event, Tapped

ORDERS, SHOP = Tap(1, ["orders.service"]), Tap(2, ["shop.service"])


def event(path: str, status: int = 200, unit: str = "orders.service") -> Event:
    return Event(1, "request", unit, "inbound", "allow", "r:1", "spiffe://m/unit/shop", "orders", 80, "http", "",
                 method="GET", path=path, status=status)  # fmt: skip


class Proxy:
    """What it was told to show."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.is_away = False
        self.heard = asyncio.Event()

    async def tap(self, units: list[str]) -> None:
        self.heard.set()
        if self.is_away:
            raise ProxyGone("away")
        self.asked.append(units)

    async def hears(self, times: int) -> None:
        """Wait until it was asked so often from now on."""
        for _ in range(times):
            self.heard.clear()
            await asyncio.wait_for(self.heard.wait(), 5)


class Told:
    """What a person was told, of what."""

    def __init__(self) -> None:
        self.states: list[tuple[str, str]] = []

    def state(self, about: str, trouble: str) -> None:
        self.states.append((about, trouble))


def made() -> tuple[Taps, Proxy, Told]:
    proxy, told = Proxy(), Told()
    return Taps(cast(ProxyLink, proxy), cast(Reports, told)), proxy, told


async def read(looker: Looker, least: int) -> tuple[list[str], int]:
    """So many, shown or lost."""
    paths: list[str] = []
    lost = 0
    async for events, more in looker:
        paths += [one.path for one in events]
        lost += more
        if len(paths) + lost >= least:
            break
    return paths, lost


async def settled() -> None:
    """Until all tasks wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_looker_gets_what_it_wants_of_its_unit() -> None:
    async def go() -> None:
        taps, proxy, _ = made()
        failed = Tap(1, ["orders.service"], Wanted(statuses=["5xx"]))
        both, shop = await taps.open(failed), await taps.open(SHOP)
        assert proxy.asked == [["orders.service"], ["orders.service", "shop.service"]]
        taps.tapped(Tapped([event("/1"), event("/2", 503), event("/3", 503, "shop.service")], 4))
        assert await read(both, 5) == (["/2"], 4)
        assert await read(shop, 5) == (["/3"], 4)
        assert taps.records == 3

    asyncio.run(go())


def test_whoever_is_slow_is_told_what_it_lost() -> None:
    async def go() -> None:
        taps, _, _ = made()
        looker = await taps.open(ORDERS)
        for number in range(MAX_WAITING + 7):
            taps.tapped(Tapped([event(f"/{number}")], 0))
        paths, lost = await read(looker, MAX_WAITING + 7)
        assert (len(paths), paths[-1], lost) == (MAX_WAITING, f"/{MAX_WAITING - 1}", 7)
        taps.tapped(Tapped([event("/after")], 0))
        assert await read(looker, 1) == (["/after"], 0)

    asyncio.run(go())


def test_while_nobody_looks_nothing_is_said() -> None:
    async def go() -> None:
        taps, proxy, _ = made()
        running = asyncio.create_task(taps.run())
        taps.renew()
        await settled()
        assert proxy.asked == []
        looker = await taps.open(ORDERS)
        looker.end()
        looker.end()
        await settled()
        assert (proxy.asked, taps.lookers) == ([["orders.service"], []], 0)
        taps.renew()
        await settled()
        assert len(proxy.asked) == 2
        assert [batch async for batch in looker] == []
        running.cancel()

    asyncio.run(go())


def test_it_is_said_again_and_to_a_proxy_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostmesh.agent.taps.TAP_SECONDS", 0.01)

    async def go() -> None:
        taps, proxy, told = made()
        running = asyncio.create_task(taps.run())
        await taps.open(ORDERS)
        await proxy.hears(3)
        proxy.is_away = True
        await proxy.hears(2)
        assert ("hostmesh tap", "away") in told.states
        proxy.is_away = False
        count = len(proxy.asked)
        await proxy.hears(2)
        assert len(proxy.asked) > count
        assert all(units == ["orders.service"] for units in proxy.asked)
        running.cancel()

    asyncio.run(go())


def test_not_for_more_than_there_is_room_nor_without_a_proxy() -> None:
    async def go() -> None:
        taps, proxy, _ = made()
        proxy.is_away = True
        with pytest.raises(ProxyGone):
            await taps.open(ORDERS)
        assert taps.lookers == 0
        proxy.is_away = False
        for _ in range(MAX_LOOKERS):
            await taps.open(ORDERS)
        with pytest.raises(HostmeshError, match="8 look already"):
            await taps.open(ORDERS)

    asyncio.run(go())
