"""Turns the agent's questions into calls of a controller: sign, publish, watch, and keeps the host's identity fresh.

Control may be away for long: what was published is kept and said again, a watch resumes where it was, and nothing here
ends the agent. Times are CLOCK_REALTIME for certificates, the loop's clock for waiting.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from hostmesh.agent import host_identity
from hostmesh.agent.grpc_link import CallFailed, GrpcLink, Status, client_context
from hostmesh.agent.host_identity import HostIdentity, IdentityError
from hostmesh.errors import HostmeshError
from hostmesh.identity import rotation
from hostmesh.identity.rotation import HOST_GRACE, SvidState
from hostmesh.identity.svid import controller_name
from hostmesh.wire.codec import decode
from hostmesh.wire.controller import (
    SERVICE,
    EnrolReply,
    PublishReply,
    PublishRequest,
    RenewRequest,
    SignReply,
    SignRequest,
    WatchEvent,
    WatchRequest,
)

log = logging.getLogger(__name__)
Reply = TypeVar("Reply")

CALL_TIMEOUT = 10.0
HEARTBEAT = 25.0  # a controller withdraws the endpoints of a host that is silent for 90 s
BACKOFF_FIRST, BACKOFF_LAST = 0.2, 10.0
_DIAL_TIMEOUT = 5.0
_AWAY = (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.CANCELLED)


class ControllerError(HostmeshError):
    """The controller refused; asking again the same way will not help."""


class ControllerAway(HostmeshError):
    """No controller could be reached now."""


class ControllerClient:
    """One for an agent. Make it inside the event loop, keep `run` running beside the agent's other tasks, `close` it.

    controllers: ``ADDRESS:PORT``; state: the agent's state directory; draw: chance, 0..1; lost: called when a
    controller that was listened to is gone. Raises `IdentityError` when the host never joined.
    """

    def __init__(
        self,
        controllers: tuple[str, ...],
        state: Path,
        draw: Callable[[], float] = random.random,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        if not controllers:
            raise IdentityError("hostmesh.toml names no controller", "hostmesh join TOKEN")
        self._folder = state / "identity"
        self._identity = host_identity.load(self._folder)
        self._controllers, self._draw, self._lost = controllers, draw, lost
        self._current = int(draw() * len(controllers)) % len(controllers)
        self._link: asyncio.Task[GrpcLink] | None = None
        self._generation = 0
        self._word: PublishRequest | None = None
        self._said = False
        self._nudge, self._saying = asyncio.Event(), asyncio.Lock()
        self._closing: dict[asyncio.Task[None], GrpcLink] = {}
        self.connected = False  # whether a watch is being answered
        self.error = ""  # why not
        self.trouble = ""  # why the host's identity could not be renewed, or its word not be said again

    @property
    def identity(self) -> HostIdentity:
        """The host's identity in force."""
        return self._identity

    async def sign(self, unit: str, csr: str) -> list[str]:
        """An SVID chain (base64 DER, leaf first) for a unit of this host; ``csr``: base64 DER."""
        return (await self._call("Sign", SignRequest(unit=unit, csr=csr), SignReply)).chain

    async def publish(self, word: PublishRequest) -> PublishReply:
        """Say what this host runs. Kept: when no controller is there now (`ControllerAway`), `run` says it later."""
        self._word, self._said = word, False
        try:
            return await self._say(word)
        except HostmeshError:
            self._nudge.set()
            raise

    async def run(self) -> None:
        """Renews the identity at half its life, says the host's word again while it is there. Until cancelled."""
        failures = 0
        jitter = self._draw()
        while True:
            self._nudge.clear()
            try:
                await self._renew_if_due(jitter)
                if self._word:
                    await self._say(self._word)
                failures, self.trouble = 0, ""
            except (HostmeshError, OSError) as error:  # the new identity could not be written, among others
                failures, self.trouble = failures + 1, str(error)
                if failures in (1, 10) or failures % 100 == 0:
                    log.warning("controller: %s (%d in a row)", error, failures)
                self._take_up_join()
            wait = HEARTBEAT * (0.8 + 0.4 * self._draw()) if not failures else self._backoff(failures)
            try:
                await asyncio.wait_for(self._nudge.wait(), wait)
            except TimeoutError:
                continue

    async def watch(self, revision: int = 0) -> AsyncIterator[WatchEvent]:
        """Events for ever, from after ``revision``; resumes by itself on another connection or controller."""
        failures = 0
        while True:
            request = msgspec.json.encode(WatchRequest(revision=revision))
            link = await self._linked()
            generation = self._generation
            try:
                async with aclosing(link.result().stream(f"/{SERVICE}/Watch", request)) as bodies:
                    async for body in bodies:
                        event = decode(body, WatchEvent)
                        self._take_bundle(event)
                        if self._word and (failures or not self._said):
                            self._nudge.set()
                        failures, revision, self.connected, self.error = 0, event.revision, True, ""
                        yield event
            except CallFailed as error:
                if generation == self._generation:  # else another connection takes over
                    if not failures:
                        log.info("watch ended: %s", error)
                    self.error = str(error)
                    self._take_up_join()
            except msgspec.MsgspecError as error:
                log.error("the controller speaks another version: %s", error)
                self.error = f"the controller speaks another version: {error}"
            finally:
                was, self.connected = self.connected, False
                if was:
                    self._lost()
            if generation == self._generation:
                failures += 1
                self._next_controller(generation)
                await asyncio.sleep(self._backoff(failures))

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        if not (self._link and self._link.cancel()):  # else it is being made, and who waits for it is cancelled too
            self._drop_link()
        await asyncio.gather(*(link.close() for link in self._closing.values()), *self._closing)

    async def _say(self, word: PublishRequest) -> PublishReply:
        async with self._saying:  # a heartbeat must not overtake a newer word
            reply = await self._call("Publish", self._word or word, PublishReply)
            news, self._said = not self._said, True
        if news:
            for unit, reason in reply.refused.items():
                log.warning("the controller does not publish %s: %s", unit, reason)
            for unit, reason in reply.unrouted.items():
                log.warning("the controller takes no routes of %s: %s", unit, reason)
        return reply

    async def _renew_if_due(self, jitter: float) -> None:
        said, now = self._identity.said, datetime.now(UTC)
        if now < said.not_before:
            raise IdentityError(
                f"this host's certificate begins {said.not_before:%Y-%m-%d %H:%M} UTC, here it is {now:%Y-%m-%d %H:%M}",
                "is the clock right? timedatectl; if it was ahead when the certificate was made, join with a new token",
            )
        match rotation.state(now, said.not_before, said.not_after, jitter, HOST_GRACE):
            case SvidState.FRESH:
                return
            case SvidState.EXPIRED:
                raise IdentityError(
                    f"this host's certificate ended {said.not_after:%Y-%m-%d %H:%M} UTC",
                    "join again with a new token; is the clock right?",
                )
        key, csr = host_identity.new_request()
        reply = await self._call("Renew", RenewRequest(csr=csr), EnrolReply)
        host_identity.must_be_valid(reply.chain, now)
        self._identity = host_identity.save(self._folder, key, reply.chain, reply.trust_bundle)
        log.info("host certificate renewed until %s", self._identity.said.not_after)
        self._drop_link()

    def _take_up_join(self) -> None:
        """Whoever is refused looks whether ``hostmesh join`` has got the host another identity meanwhile."""
        try:
            found = host_identity.load(self._folder)
        except HostmeshError as error:
            self.trouble = str(error)
            return
        if found.chain != self._identity.chain:
            log.info("another identity of this host is there: %s", found.said.spiffe_id)
            self._identity = found
            self._drop_link()
            self._nudge.set()

    def _take_bundle(self, event: WatchEvent) -> None:
        try:
            if host_identity.save_bundle(self._folder, event.trust_bundle) != self._identity.bundle:
                self._identity = host_identity.load(self._folder)
        except (HostmeshError, OSError) as error:
            log.error("trust bundle: %s", error)

    async def _call(self, name: str, request: msgspec.Struct, kind: type[Reply]) -> Reply:
        """One call; each controller is tried once."""
        body, error = msgspec.json.encode(request), None
        for _ in self._controllers:
            link = await self._linked()
            generation = self._generation
            try:
                return decode(await link.result().unary(f"/{SERVICE}/{name}", body, CALL_TIMEOUT), kind)
            except CallFailed as problem:
                if problem.status not in _AWAY:
                    raise ControllerError(f"{name}: {problem.details}") from problem
                error = problem
                self._next_controller(generation)
            except msgspec.MsgspecError as problem:
                raise ControllerError(f"{name}: the controller speaks another version: {problem}") from problem
        reason = error.details if error else "none is known"
        raise ControllerAway(f"no controller can do it now: {reason}", "traffic goes on with what is in force")

    async def _linked(self) -> asyncio.Task[GrpcLink]:
        """The connection to the current controller, made or failed (`CallFailed`). All wait for the same one."""
        while True:
            if self._link is None or (self._link.done() and (self._link.exception() or self._link.result().ended)):
                self._link = asyncio.create_task(self._dial(), name="controller connection")
            link = self._link
            if not link.done():
                await asyncio.wait((link,))
            if link is self._link:
                return link

    async def _dial(self) -> GrpcLink:
        mine = self._identity
        context = client_context(mine.bundle, mine.key, mine.chain)
        name = controller_name(mine.trust_domain)
        return await GrpcLink.dial(self._controllers[self._current], context, name, _DIAL_TIMEOUT)

    def _next_controller(self, generation: int) -> None:
        """Of all who failed at one connection (``generation``: when they had it) the first moves on for all."""
        if len(self._controllers) > 1 and generation == self._generation:
            self._current = (self._current + 1) % len(self._controllers)
            self._drop_link()

    def _drop_link(self) -> None:
        """The next call opens a new connection; calls under way end on the old one, watches move."""
        link, self._link = self._link, None
        self._generation += 1
        if link is None or link.cancel() or link.cancelled() or link.exception():  # who waits for it begins again
            return
        closing = asyncio.create_task(link.result().retire(CALL_TIMEOUT))
        self._closing[closing] = link.result()
        closing.add_done_callback(self._closing.pop)

    def _backoff(self, failures: int) -> float:
        return min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(failures, 10)) * (0.5 + 0.5 * self._draw())
