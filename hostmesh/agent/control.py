"""Turns requests on the agent's Unix socket into answers: anyone may look, root may change (unix(7), SO_PEERCRED)."""

import asyncio
import contextlib
import socket
import struct
from pathlib import Path
from typing import Protocol

from hostmesh.agent.taps import Looker
from hostmesh.errors import HostmeshError
from hostmesh.wire import agent_control as wire
from hostmesh.wire.codec import BadFrame, FrameReader, encode

_MODE = 0o666
_IDLE_SECONDS = 60.0
_MOST_CLIENTS = 64
_TAP_SECONDS = 10.0  # who takes nothing of a tap for so long looks no more


class Questions(Protocol):
    """What can be asked; `agent/main.py` has the answers."""

    async def status(self, number: int) -> wire.Answer: ...
    def plan(self, number: int) -> wire.Answer: ...
    async def diff(self, number: int, policies: dict[str, str]) -> wire.Answer: ...
    async def counts(self, number: int) -> wire.Answer: ...
    async def reconcile(self, number: int) -> wire.Answer: ...
    async def tap(self, request: wire.Tap) -> Looker: ...


class ControlSocket:
    """Serves the socket until cancelled."""

    def __init__(self, path: str, questions: Questions) -> None:
        self._path, self._questions = Path(path), questions
        self._clients = 0

    async def run(self) -> None:
        """Listen; the socket file stays where it is when the agent stops, so that clients see who is missing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f"{self._path.name}.new")
        fresh.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, str(fresh))
        fresh.chmod(_MODE)
        fresh.rename(self._path)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        root = peer_uid(writer.get_extra_info("socket")) == 0
        try:
            if root or self._clients <= _MOST_CLIENTS:  # others can fill the places, and must not lock root out
                await self._converse(reader, writer, root=root)
        except (BadFrame, ConnectionError, TimeoutError):
            pass  # that client's own trouble; it sees the closed connection
        finally:
            self._clients -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, root: bool) -> None:
        frames: FrameReader[wire.Request] = FrameReader(wire.Request, limit=wire.MAX_REQUEST)
        while data := await asyncio.wait_for(reader.read(1 << 16), _IDLE_SECONDS):
            for request in frames.feed(data):
                if isinstance(request, wire.Tap) and root:
                    await self._show(request, reader, writer)
                    return
                writer.write(encode(await self._answer(request, root=root)))
                await asyncio.wait_for(writer.drain(), _IDLE_SECONDS)

    async def _show(self, request: wire.Tap, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one side ends it; the other has nothing more to say."""
        try:
            looker = await self._questions.tap(request)
        except HostmeshError as error:
            writer.write(encode(wire.Refused(request.id, str(error))))
            return
        ended = asyncio.create_task(_closed(reader))
        ended.add_done_callback(lambda _: looker.end())
        try:
            writer.write(encode(wire.Tapped(request.id, [], 0)))
            async for events, lost in looker:
                writer.write(encode(wire.Tapped(request.id, events, lost)))
                await asyncio.wait_for(writer.drain(), _TAP_SECONDS)
        finally:
            looker.end()
            ended.cancel()

    async def _answer(self, request: wire.Request, *, root: bool) -> wire.Answer:
        answer: wire.Answer
        try:
            match request:
                case wire.GetStatus(id=number):
                    answer = await self._questions.status(number)
                case wire.GetPlan(id=number):
                    answer = self._questions.plan(number)
                case wire.GetDiff(id=number, policies=policies):
                    answer = await self._questions.diff(number, policies)
                case wire.GetCounts(id=number):
                    answer = await self._questions.counts(number)
                case wire.Reconcile(id=number) if root:
                    answer = await self._questions.reconcile(number)
                case wire.Reconcile() | wire.Tap():
                    answer = wire.Refused(request.id, "only root may do this")
        except (HostmeshError, OSError) as error:
            answer = wire.Refused(request.id, str(error))
        return answer


async def _closed(reader: asyncio.StreamReader) -> None:
    """Waits until the other side closes the connection, or says what it has no business to say."""
    with contextlib.suppress(ConnectionError):
        await reader.read(1)


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a connected Unix socket, as the kernel knows it (struct ucred: pid, uid, gid)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid
