"""Turns the controller's word into the catalog in force, and what is declared here into the word for the controller.

The last word is kept on disk: a host that starts with every controller dead goes on with it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from hostmesh.agent.controller_client import ControllerAway, ControllerClient
from hostmesh.agent.host_identity import IdentityError
from hostmesh.agent.reports import Reports
from hostmesh.agent.services import NOTHING, after
from hostmesh.apply.files import Files
from hostmesh.errors import HostmeshError
from hostmesh.identity import revocation
from hostmesh.names import SpiffeId, dns_names_of
from hostmesh.policy.settings import Settings
from hostmesh.wire.codec import decode
from hostmesh.wire.controller import PublishRequest, WatchEvent, Workload
from hostmesh.wire.proxy_control import SvidStatus

_RETRY_FIRST, _RETRY_MOST = 0.2, 10.0
_LOOK_FOR_IDENTITY = 5.0
_KEEP_AGAIN = 5.0


def load_catalog(path: Path) -> WatchEvent:
    """The last word of a controller; nothing when there never was one. Raises `HostmeshError` for a broken file."""
    try:
        return decode(path.read_bytes(), WatchEvent)
    except FileNotFoundError:
        return NOTHING
    except msgspec.MsgspecError as error:
        raise HostmeshError(f"{path} cannot be read: {error}", "remove it; it is fetched anew") from error


class Mesh:
    """The host's link with its controllers. ``changed`` is called when catalog, refusals or the connection changed."""

    def __init__(self, settings: Settings, reports: Reports, changed: Callable[[str], None]) -> None:
        self._settings, self._reports, self._changed = settings, reports, changed
        self._state = Path(settings.paths.state)
        self._path = self._state / "catalog.json"
        self._client: ControllerClient | None = None
        self._word: PublishRequest | None = None
        self._to_say, self._to_keep = asyncio.Event(), asyncio.Event()
        self.catalog = NOTHING
        self.published: frozenset[str] = frozenset()
        self.refused: dict[str, str] = {}
        self.unrouted: dict[str, str] = {}
        self.error = ""

    @property
    def joined(self) -> bool:
        """Whether this host has an identity."""
        return self._client is not None

    @property
    def connected(self) -> bool:
        """Whether a controller is being listened to right now."""
        return self._client is not None and self._client.connected

    @property
    def why_not(self) -> str:
        """Why no controller is being listened to; empty while that is not known."""
        return self.error or (self._client.error if self._client else "")

    @property
    def trouble(self) -> str:
        """What goes wrong with a controller that is there; empty when nothing does."""
        return self._client.trouble if self._client else ""

    @property
    def identity_ends(self) -> int:
        """When the host's own SVID ends, seconds since the epoch; 0 without one."""
        return int(self._client.identity.said.not_after.timestamp()) if self._client else 0

    def is_revoked(self, svid: SvidStatus) -> bool:
        """Whether an SVID of this host counts for nothing: a new one may count."""
        if self._client is None or not self.catalog.revoked:
            return False
        identity, hosts = SpiffeId.parse(svid.spiffe_id), dns_names_of(self._client.identity.host)
        return revocation.of(self.catalog.revoked, identity, hosts, int(svid.serial, 16), svid.not_before) is not None

    def load(self) -> None:
        """Take up what was known before the restart."""
        try:
            self.catalog = load_catalog(self._path)
        except HostmeshError as error:
            self._reports.warning(str(error))

    def say(self, addresses: tuple[str, ...], workloads: list[Workload]) -> None:
        """What is declared here, ready or not; the controller hears of it when it is another word than before."""
        word = PublishRequest(list(addresses), self._settings.ports.wire, workloads, self._settings.zone)
        if word != self._word:
            self._word = word
            self._to_say.set()

    async def sign(self, unit: str, csr: str) -> list[str]:
        """An SVID chain for a unit of this host. Raises `ControllerAway`, or `ControllerError` with the reason."""
        if self._client is None:
            raise ControllerAway(self.error or "this host has not joined a mesh", "hostmesh join TOKEN")
        return await self._client.sign(unit, csr)

    async def run(self) -> None:
        """Talk with the controllers until cancelled."""
        client = self._client = await self._join()
        self.error = ""
        self._changed("joined")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(client.run(), name="controller client")
                tasks.create_task(self._listen(client), name="controller watch")
                tasks.create_task(self._speak(client), name="controller publish")
                tasks.create_task(self._keep(), name="controller's word on disk")
        finally:
            await client.close()

    async def _join(self) -> ControllerClient:
        while True:
            try:
                return ControllerClient(
                    self._settings.controllers, self._state, lost=lambda: self._changed("controller away")
                )
            except IdentityError as error:
                self.error = str(error)
            await asyncio.sleep(_LOOK_FOR_IDENTITY)

    async def _listen(self, client: ControllerClient) -> None:
        async for event in client.watch(self.catalog.revision):
            before, self.catalog = self.catalog, after(self.catalog, event)
            if self.refused or self.unrouted or self.error:  # the answer may be another one now
                self._to_say.set()
            for line in revocation.news(before.revoked, self.catalog.revoked):
                self._reports.warning(line)
            self._changed("controller")
            if self.catalog != before:
                self._to_keep.set()

    async def _keep(self) -> None:
        """Write the catalog down, beside its way into force: a restart that finds an older one is told the rest."""
        while True:
            await self._to_keep.wait()
            self._to_keep.clear()
            text = msgspec.json.encode(self.catalog).decode()
            try:
                await asyncio.to_thread(Files().write, str(self._path), text)
            except HostmeshError as error:
                self._reports.state("the controller's last word is not kept on disk", str(error))
                self._to_keep.set()
                await asyncio.sleep(_KEEP_AGAIN)
            else:
                self._reports.state("the controller's last word is not kept on disk", "")

    async def _speak(self, client: ControllerClient) -> None:
        delay = _RETRY_FIRST
        while True:
            await self._to_say.wait()
            self._to_say.clear()
            word = self._word
            if word is None:
                continue
            try:
                reply = await client.publish(word)
            except HostmeshError as error:
                self.error = str(error)
                with contextlib.suppress(TimeoutError):  # news, or a controller that is back, ends the wait
                    await asyncio.wait_for(self._to_say.wait(), delay)
                self._to_say.set()
                delay = min(delay * 2, _RETRY_MOST)
                continue
            delay = _RETRY_FIRST
            self.error = ""
            self.published = frozenset(load.unit for load in word.workloads if load.ready) - reply.refused.keys()
            if (reply.refused, reply.unrouted) != (self.refused, self.unrouted):
                self.refused, self.unrouted = reply.refused, reply.unrouted
                self._changed("refused")
