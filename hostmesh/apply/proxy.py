"""Turns requests to the proxy into frames on its control socket, and its frames into answers and events."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from hostmesh.errors import HostmeshError
from hostmesh.wire.codec import FrameReader, encode
from hostmesh.wire.proxy_control import (
    Ack,
    Answer,
    Csr,
    GetCsr,
    GetStats,
    GetStatus,
    Nack,
    Request,
    SetSnapshot,
    SetSvid,
    Stats,
    Status,
    Tap,
    Unasked,
)
from hostmesh.wire.snapshot import Snapshot

_ANSWER_SECONDS = 10.0
_READ = 1 << 16
AnswerT = TypeVar("AnswerT", Ack, Csr, Status, Stats)


class ProxyGone(HostmeshError):
    """The proxy isn't there, or went away before it answered."""


class ProxyRefused(HostmeshError):
    """The proxy refused, and changed nothing."""


class ProxyClient:
    """One connection to the proxy. unasked: gets all that it sends unasked, in order."""

    def __init__(self, path: str, unasked: Callable[[Unasked], None]) -> None:
        self._path = path
        self._unasked = unasked
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        self.gone.set()

    async def connect(self) -> None:
        """Connect; ``gone`` is clear from here until the connection ends. Raises `ProxyGone`."""
        await self.close()
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise ProxyGone(f"{self._path}: {error.strerror}", "systemctl status hostmesh-proxy.service") from error
        self.gone.clear()
        self._reader = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        """End the connection, if there is one; who waits for an answer gets `ProxyGone`."""
        task, self._reader = self._reader, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})  # not `await task`: that could not tell its cancellation from ours
            if not task.cancelled():
                task.result()
        self._lost()

    async def set_snapshot(self, snapshot: Snapshot) -> None:
        """Make it the configuration in force. Raises `ProxyRefused` with the reason."""
        await self._ask(SetSnapshot(id=next(self._ids), snapshot=snapshot), Ack)

    async def csr(self, unit: str) -> str:
        """A signing request for a new key of this unit, base64 DER."""
        return (await self._ask(GetCsr(id=next(self._ids), unit=unit), Csr)).csr

    async def set_svid(self, unit: str, chain: list[str]) -> None:
        """Hand over the chain for the key of the last request."""
        await self._ask(SetSvid(id=next(self._ids), unit=unit, chain=chain), Ack)

    async def status(self) -> Status:
        """What is in force."""
        return await self._ask(GetStatus(id=next(self._ids)), Status)

    async def stats(self) -> Stats:
        """All counters since the proxy started."""
        return await self._ask(GetStats(id=next(self._ids)), Stats)

    async def tap(self, units: list[str]) -> None:
        """Look at these units and no others, for the next `TAP_SECONDS`."""
        await self._ask(Tap(id=next(self._ids), units=units), Ack)

    async def _ask(self, request: Request, expected: type[AnswerT]) -> AnswerT:
        if self._writer is None or self.gone.is_set():
            raise ProxyGone("no connection to the proxy", "systemctl status hostmesh-proxy.service")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            self._writer.write(encode(request))
            await self._writer.drain()
            answer = await asyncio.wait_for(future, _ANSWER_SECONDS)
        except (OSError, TimeoutError) as error:
            # An answer that comes late would answer nobody: begin anew with a new connection.
            self._lost()
            raise ProxyGone(f"the proxy did not answer: {error or 'in time'}") from error
        finally:
            self._waiting.pop(request.id, None)
        if isinstance(answer, Nack):
            raise ProxyRefused(answer.reason)
        if not isinstance(answer, expected):
            raise ProxyGone(f"the proxy answered with {type(answer).__name__}, not {expected.__name__}")
        return answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames: FrameReader[Answer] = FrameReader(Answer)
        try:
            while data := await reader.read(_READ):
                for message in frames.feed(data):
                    self._take(message)
        except (OSError, HostmeshError):
            pass  # told by `gone`, and to whoever waits
        finally:
            self._lost()

    def _take(self, message: Answer) -> None:
        if isinstance(message, Unasked):
            self._unasked(message)
            return
        future = self._waiting.get(message.id)
        if future is not None and not future.done():
            future.set_result(message)

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ProxyGone("the proxy went away before it answered"))
        self.gone.set()
