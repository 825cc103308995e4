"""Turns who looks at a unit's requests (`hostmesh tap`) into what the proxy sends, and that into what each one sees.

Law: while nobody looks, nothing is asked of the proxy and nothing comes. A looker that is slow, or a proxy that sends
more than fits, loses records, never a request, and each looker is told how many it lost. The proxy stops by itself when
this agent does not say any more that somebody looks.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

from hostmesh.agent.proxy_link import ProxyLink
from hostmesh.agent.reports import Reports
from hostmesh.errors import HostmeshError
from hostmesh.observe.tapped import fits
from hostmesh.wire.agent_control import Tap
from hostmesh.wire.proxy_control import TAP_SECONDS, Event, Tapped

MAX_LOOKERS = 8
MAX_WAITING = 1024
_BATCH = 128


class Looker:
    """One that looks: gives batches of (records, lost since the last batch) until its end, which it tells ``gone``."""

    def __init__(self, tap: Tap, gone: Callable[["Looker"], None]) -> None:
        self.units = frozenset(tap.units)
        self._wanted, self._gone = tap.wanted, gone
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._news = asyncio.Event()
        self._ended = False

    def offer(self, batch: Tapped) -> None:
        """What it wants of this, as far as there is room."""
        self._lost += batch.dropped
        for event in batch.events:
            if event.unit not in self.units or not fits(event, self._wanted):
                continue
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(event)
            else:
                self._lost += 1
        if self._waiting or self._lost:
            self._news.set()

    def end(self) -> None:
        """It looks no more."""
        if not self._ended:
            self._ended = True
            self._news.set()
            self._gone(self)

    async def __aiter__(self) -> AsyncIterator[tuple[list[Event], int]]:
        while True:
            await self._news.wait()
            if self._ended:
                return
            records = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            lost, self._lost = self._lost, 0
            if not self._waiting:
                self._news.clear()
            yield records, lost


class Taps:
    """All that look. ``records``: how many the proxy has sent for them since the start."""

    def __init__(self, proxy: ProxyLink, reports: Reports) -> None:
        self._proxy, self._reports = proxy, reports
        self._lookers: list[Looker] = []
        self._said: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self.records = 0

    @property
    def lookers(self) -> int:
        """How many look just now."""
        return len(self._lookers)

    async def open(self, tap: Tap) -> Looker:
        """One more, from now on. Raises HostmeshError where the proxy shows nothing."""
        if len(self._lookers) >= MAX_LOOKERS:
            raise HostmeshError(f"{MAX_LOOKERS} look already", "end one of them: pgrep -af 'hostmesh tap'")
        looker = Looker(tap, self._close)
        self._lookers.append(looker)
        try:
            await self._say()
        except BaseException:
            looker.end()
            raise
        return looker

    def _close(self, looker: Looker) -> None:
        self._lookers.remove(looker)
        self.renew()

    def tapped(self, batch: Tapped) -> None:
        """What the proxy saw."""
        self.records += len(batch.events)
        for looker in self._lookers:
            looker.offer(batch)

    def renew(self) -> None:
        """Say again who is looked at: it has changed, or the proxy is another."""
        self._changed.set()

    async def run(self) -> None:
        """Say who is looked at as often as the proxy must hear it, until cancelled."""
        while True:
            is_open = bool(self._lookers or self._said)
            with contextlib.suppress(TimeoutError):  # then it is time to say it again
                await asyncio.wait_for(self._changed.wait(), TAP_SECONDS / 3 if is_open else None)
            self._changed.clear()
            if not (self._lookers or self._said):
                continue
            try:
                await self._say()
            except HostmeshError as error:
                self._reports.state("hostmesh tap", str(error))
            else:
                self._reports.state("hostmesh tap", "")

    async def _say(self) -> None:
        units = frozenset[str]().union(*(looker.units for looker in self._lookers))
        await self._proxy.tap(sorted(units))
        self._said = units
