"""Turns a proxy that comes and goes into a link: connects, learns what is in force there, waits until it goes.

Meshed traffic is refused while the proxy is down; it comes back by itself, with its last snapshot.
"""

import asyncio
from collections.abc import Callable

from hostmesh.apply.proxy import ProxyClient
from hostmesh.errors import HostmeshError
from hostmesh.wire.proxy_control import Stats, Status, Unasked
from hostmesh.wire.snapshot import Snapshot

_RETRY_FIRST, _RETRY_MOST = 0.02, 0.5


class ProxyLink:
    """``changed`` is called when the link comes or goes, ``unasked`` with all that it sends unasked.

    revision: of the snapshot in force there, empty for none; None while the proxy doesn't answer. first: set once it
    has answered. It is the adapter behind `apply.executor.Proxy`.
    """

    def __init__(self, path: str, changed: Callable[[], None], unasked: Callable[[Unasked], None]) -> None:
        self._client = ProxyClient(path, unasked)
        self._changed = changed
        self.revision: str | None = None
        self.last: Status | None = None
        self.first = asyncio.Event()
        self.error = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether the proxy has said what is in force there."""
        return self.revision is not None

    async def run(self) -> None:
        """Stay connected until cancelled."""
        delay = _RETRY_FIRST
        try:
            while True:
                try:
                    await self._client.connect()
                    await self.status()
                    delay, self.error = _RETRY_FIRST, ""
                    self.first.set()
                    self._changed()
                    await self._client.gone.wait()
                    self.error = "the proxy closed the connection"
                except HostmeshError as error:
                    self.error = str(error)
                self._lose()
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MOST)
        finally:
            await self._client.close()

    def _lose(self) -> None:
        was, self.revision = self.revision, None
        if was is not None:
            self._changed()

    async def set_snapshot(self, snapshot: Snapshot) -> None:
        """Make this the configuration in force there. Raises `ProxyRefused` with the proxy's reason, or `ProxyGone`."""
        await self._client.set_snapshot(snapshot)
        if self.revision is not None:
            self.revision = snapshot.revision

    async def status(self) -> Status:
        """What is in force there."""
        self.last = await self._client.status()
        self.revision = self.last.revision
        return self.last

    async def stats(self) -> Stats:
        """All counters since the proxy's start."""
        return await self._client.stats()

    async def csr(self, unit: str) -> str:
        """A signing request of a new key for the unit, base64 DER; the key stays there."""
        return await self._client.csr(unit)

    async def set_svid(self, unit: str, chain: list[str]) -> None:
        """The certificate chain for the key of the last `csr` of this unit."""
        await self._client.set_svid(unit, chain)

    async def tap(self, units: list[str]) -> None:
        """Look at these units and no others, for the next `TAP_SECONDS`."""
        await self._client.tap(units)
