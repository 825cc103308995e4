"""Turns gRPC calls into streams of one HTTP/2 connection over TLS: what the agent needs of gRPC, and no more.

gRPC's own client is a C core with threads of its own and 16 MB of the agent's memory; HTTP/2 is h2's here, and what is
left of gRPC are calls with one request, one answer or a stream of answers, and their status. Bodies are bytes.
Sources: gRPC over HTTP/2 (PROTOCOL-HTTP2.md of grpc/grpc), RFC 9113.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from urllib.parse import unquote

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import FrameTooLargeError, ProtocolError
from h2.settings import SettingCodes, Settings

from hostmesh.errors import HostmeshError

PING_EVERY, PING_ANSWER = 15.0, 5.0
_PING = b"hostmesh"  # eight bytes (RFC 9113, section 6.7)
_HEAD = 5  # of a message: whether it is compressed, its length
_FRAME_HEAD, _GOAWAY, _GOAWAY_HEAD = 9, 7, 8  # RFC 9113, sections 4.1 and 6.8
_WINDOW = 4 * 1024 * 1024
_SHUTDOWN = 0.2  # for what is written to leave; gRPC answers no close_notify


class Status(IntEnum):
    """How a call ended (grpc/grpc, doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallFailed(HostmeshError):
    """A call that ended with another status than OK, or had no connection (UNAVAILABLE)."""

    def __init__(self, status: Status, details: str) -> None:
        super().__init__(f"{status.name}: {details}")
        self.status, self.details = status, details


def client_context(roots: bytes, key: bytes = b"", chain: bytes = b"") -> ssl.SSLContext:
    """TLS 1.3 to a server that ``roots`` vouch for, as whoever ``key`` and ``chain`` (leaf first) say; all PEM.

    Raises `CallFailed` for what OpenSSL does not take, and where there is no descriptor left.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=roots.decode())
        if key:
            with _readable(key + chain) as path:
                context.load_cert_chain(path)
    except (OSError, ValueError) as error:
        raise CallFailed(Status.UNAVAILABLE, f"TLS cannot be set up: {error}") from error
    return context


class GrpcLink(asyncio.Protocol):
    """A connection to a server, from `dial` on. ``ended``: why it takes no more calls, empty before."""

    def __init__(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.local_settings = Settings(
            client=True, initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW}
        )
        self._where = self._authority = ""
        self._calls: dict[int, _Call] = {}
        self._unsent: dict[int, memoryview] = {}
        self._idle, self._lost = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._got = bytearray()
        self._over = False
        self.ended = ""

    @classmethod
    async def dial(cls, where: str, context: ssl.SSLContext, name: str, within: float) -> "GrpcLink":
        """To ``ADDRESS:PORT``, whose certificate must be for ``name``. Raises `CallFailed`; ``within``: seconds."""
        address, _, port = where.rpartition(":")
        if not (port.isdecimal() and int(port) < 65536):
            raise CallFailed(Status.UNAVAILABLE, f"{where!r} is no ADDRESS:PORT")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within):
                transport, link = await loop.create_connection(
                    cls,
                    address.strip("[]"),
                    int(port),
                    ssl=context,
                    server_hostname=name,
                    happy_eyeballs_delay=0.25,
                    ssl_shutdown_timeout=_SHUTDOWN,
                )
        except TimeoutError as error:
            raise CallFailed(Status.UNAVAILABLE, f"{where}: no connection within {within:g} s") from error
        except OSError as error:
            raise CallFailed(Status.UNAVAILABLE, f"{where}: {error}") from error
        except UnicodeError as error:  # a name that no name can be (RFC 5891)
            raise CallFailed(Status.UNAVAILABLE, f"{where!r} is no ADDRESS:PORT: {error}") from error
        link._where, link._authority = where, name
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            transport.abort()
            raise CallFailed(Status.UNAVAILABLE, f"{where} does not speak HTTP/2")
        return link

    async def unary(self, path: str, body: bytes, within: float) -> bytes:
        """One answer to one request, ``within`` seconds. Raises `CallFailed`."""
        try:
            async with asyncio.timeout(within):
                with self._call(path, body, within) as call:
                    answer = await call.next()
                    if answer is None or await call.next() is not None:
                        raise CallFailed(Status.INTERNAL, "not one answer, but none or several")
                    return answer
        except TimeoutError as error:
            raise CallFailed(Status.DEADLINE_EXCEEDED, f"{self._where}: no answer within {within:g} s") from error

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The answers to one request, until the server ends them. Raises `CallFailed`; `aclose` cancels the call."""
        with self._call(path, body, None) as call:
            while (answer := await call.next()) is not None:
                yield answer

    async def retire(self, grace: float) -> None:
        """Streams end now (CANCELLED), other calls within ``grace`` seconds, then the connection."""
        for call in self._calls.values():
            if call.is_stream:
                call.finish(CallFailed(Status.CANCELLED, "another connection takes over"))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._idle.wait()
        finally:
            self._hang_up(Status.CANCELLED, "closed here")
        await self._lost.wait()

    async def close(self) -> None:
        """Calls under way end with CANCELLED. Returns when the connection is no more."""
        self._hang_up(Status.CANCELLED, "closed here")
        await self._lost.wait()

    @contextmanager
    def _call(self, path: str, body: bytes, within: float | None) -> Iterator["_Call"]:
        if self.ended:
            raise CallFailed(Status.UNAVAILABLE, self.ended)
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        if within is not None:
            fields.append(("grpc-timeout", f"{max(1, int(within * 1000))}m"))
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, fields)
        except ProtocolError as error:  # more calls than the server takes, or no number left
            raise CallFailed(Status.UNAVAILABLE, str(error)) from error
        call = self._calls[number] = _Call(is_stream=within is None)
        self._idle.clear()
        self._unsent[number] = memoryview(b"\0" + len(body).to_bytes(_HEAD - 1, "big") + body)
        self._send()
        try:
            yield call
        finally:
            del self._calls[number]
            unsent = self._unsent.pop(number, None)
            if not self._over and (unsent or not call.closed):
                with suppress(ProtocolError):  # the server has reset it
                    self._h2.reset_stream(number, ErrorCodes.CANCEL)
                self._flush()
            if not self._calls:
                self._idle.set()
                if self.ended:
                    self._hang_up(Status.CANCELLED, self.ended)

    def _send(self) -> None:
        """As much of the requests as the server's windows have room for (RFC 9113, section 5.2)."""
        for number in tuple(self._unsent):
            rest = self._unsent[number]
            while rest and (room := self._h2.local_flow_control_window(number)) > 0:
                part, rest = rest[: min(room, size := self._h2.max_outbound_frame_size)], rest[min(room, size) :]
                self._h2.send_data(number, bytes(part), end_stream=not rest)
            if rest:
                self._unsent[number] = rest
            else:
                del self._unsent[number]
        self._flush()

    def _flush(self) -> None:
        self._transport.write(self._h2.data_to_send())

    def _ping(self) -> None:
        self._h2.ping(_PING)
        self._flush()
        self._wait(PING_ANSWER, self._give_up)

    def _give_up(self) -> None:
        self._end(Status.UNAVAILABLE, f"it did not answer a ping within {PING_ANSWER:g} s")
        self._transport.abort()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _hang_up(self, status: Status, why: str) -> None:
        if not self._over:
            self._h2.close_connection()
            self._flush()
            self._end(status, why)
            self._close_transport()

    def _close_transport(self) -> None:
        """What is written may leave. asyncio waits for ever for a server that has ended its side and reads no more."""
        self._transport.close()
        self._wait(_SHUTDOWN, self._transport.abort)

    def _end(self, status: Status, why: str) -> None:
        if self._over:
            return
        self._over, self.ended = True, self.ended or f"{self._where}: {why}"
        if self._timer:
            self._timer.cancel()
        self._unsent.clear()
        for call in self._calls.values():
            call.finish(CallFailed(status, f"{self._where}: {why}"))

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        self._flush()
        self._wait(PING_EVERY, self._ping)

    def data_received(self, data: bytes) -> None:
        """Bytes of the server: it lives, though its answer to a ping may be behind megabytes on a slow line."""
        if self._over:
            return
        self._wait(PING_EVERY, self._ping)
        self._got += data
        try:
            for frame in self._frames():
                if self._over:
                    return
                if frame[3] == _GOAWAY and len(frame) >= _FRAME_HEAD + _GOAWAY_HEAD:
                    self._take_leave(frame[_FRAME_HEAD:])
                else:
                    for event in self._h2.receive_data(frame):
                        self._take(event)
            if not self._over:
                self._send()
        except ProtocolError as error:
            self._flush()  # h2 tells the server
            self._end(Status.UNAVAILABLE, f"HTTP/2 is broken: {error}")
            self._close_transport()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whomever."""
        self._end(Status.UNAVAILABLE, f"the connection ended: {exc}" if exc else "the connection ended")
        if self._timer:
            self._timer.cancel()
        self._lost.set()

    def _frames(self) -> Iterator[bytes]:
        """Whole frames of what has come, out of it. h2 would wait for the rest of one that is too long."""
        while len(self._got) >= _FRAME_HEAD:
            length = int.from_bytes(self._got[:3], "big")
            if length > (most := self._h2.max_inbound_frame_size):
                raise FrameTooLargeError(f"a frame of {length} bytes, {most} at most")
            if len(self._got) < _FRAME_HEAD + length:
                return
            yield bytes(self._got[: _FRAME_HEAD + length])
            del self._got[: _FRAME_HEAD + length]

    def _take_leave(self, goaway: bytes) -> None:
        """The server takes no more calls, and ends those up to the last that it names. h2 would end them all."""
        last, code = int.from_bytes(goaway[:4], "big") & 0x7FFFFFFF, int.from_bytes(goaway[4:8], "big")
        why = f"the server closes the connection ({code} {goaway[_GOAWAY_HEAD:].decode(errors='replace')})"
        if code != ErrorCodes.NO_ERROR or not self._calls:
            self._hang_up(Status.UNAVAILABLE, why)
            return
        self.ended = f"{self._where}: {why}"
        for number, call in self._calls.items():
            if number > last:
                call.finish(CallFailed(Status.UNAVAILABLE, self.ended))

    def _take(self, event: events.Event) -> None:
        match event:
            case events.DataReceived(stream_id=number, flow_controlled_length=length) if length:
                self._h2.acknowledge_received_data(length, number)
            case events.StreamReset(stream_id=number):
                self._unsent.pop(number, None)
        call = self._calls.get(getattr(event, "stream_id", 0) or 0)
        if call:
            call.take(event)


class _Call:
    """What has come of one stream so far. ``done``: whoever waits has been told the end; ``closed``: by the server."""

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream, self.done, self.closed = is_stream, False, False
        self._answers: asyncio.Queue[bytes | CallFailed | None] = asyncio.Queue()
        self._body, self._fields = bytearray(), dict[bytes, bytes]()

    async def next(self) -> bytes | None:
        """The next answer, None at the end. Raises `CallFailed`."""
        answer = await self._answers.get()
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    def take(self, event: events.Event) -> None:
        """What the server sent on this stream."""
        self.closed |= isinstance(event, events.StreamEnded | events.StreamReset)
        match event:
            case events.ResponseReceived(headers=fields) | events.TrailersReceived(headers=fields):
                self._fields.update(fields)
            case events.DataReceived(data=data):
                self._take_data(data)
            case events.StreamEnded():
                self._end()
            case events.StreamReset(error_code=code):
                status = Status.CANCELLED if code == ErrorCodes.CANCEL else Status.UNAVAILABLE
                self.finish(CallFailed(status, f"the server reset the call, code {code}"))

    def _take_data(self, data: bytes) -> None:
        self._body += data
        while len(self._body) >= _HEAD:
            end = _HEAD + int.from_bytes(self._body[1:_HEAD], "big")
            if self._body[0]:
                self.finish(CallFailed(Status.INTERNAL, "a compressed answer, which nobody asked for"))
            if self.done or len(self._body) < end:
                return
            self._answers.put_nowait(bytes(self._body[_HEAD:end]))
            del self._body[:end]

    def _end(self) -> None:
        code, word = self._fields.get(b":status"), self._fields.get(b"grpc-status", b"")
        try:
            status = Status(int(word))
        except ValueError:
            self.finish(CallFailed(Status.UNKNOWN, f"it ended with HTTP status {code!r}, status of gRPC {word!r}"))
            return
        if status is not Status.OK:
            self.finish(CallFailed(status, unquote(self._fields.get(b"grpc-message", b"").decode("latin-1"))))
        elif self._body:
            self.finish(CallFailed(Status.INTERNAL, "it ended within an answer"))
        else:
            self.finish(None)

    def finish(self, how: CallFailed | None) -> None:
        """What was told first counts. ``how``: None for a call that went well."""
        if not self.done:
            self.done = True
            self._answers.put_nowait(how)


@contextmanager
def _readable(text: bytes) -> Iterator[str]:
    """A path to a text that is in no file system: OpenSSL reads keys from paths only."""
    descriptor = os.memfd_create("identity")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
