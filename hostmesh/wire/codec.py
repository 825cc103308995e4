"""Turns messages into frames and bytes into messages: a 4-byte big-endian length, then one JSON object. No sockets.

Both control sockets speak it: the proxy's (`proxy_control.py`) and the agent's (`agent_control.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec

from hostmesh.errors import HostmeshError
from hostmesh.wire.proxy_control import MAX_FRAME
from hostmesh.wire.snapshot import Struct

HEADER = 4
MessageT = TypeVar("MessageT")
T = TypeVar("T")


class BadFrame(HostmeshError):
    """Bytes that are no frame of the protocol: the connection is of no more use."""


def encode(message: Struct) -> bytes:
    """The frame of a message. Raises `BadFrame` when it is larger than 64 MiB."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_FRAME:
        raise BadFrame(f"a {type(message).__name__} of {len(body)} bytes does not fit in a frame of {MAX_FRAME}")
    return len(body).to_bytes(HEADER, "big") + body


@contextmanager
def _decode_errors_only() -> Iterator[None]:
    """msgspec lets two more through: text that is not UTF-8 where it looks for a name, and nesting beyond its limit."""
    try:
        yield
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode(data: bytes | str, of: type[T]) -> T:
    """The JSON of a value that comes from elsewhere. Whatever is wrong with it is a `msgspec.DecodeError`."""
    with _decode_errors_only():
        return msgspec.json.decode(data, type=of)


class FrameReader(Generic[MessageT]):
    """Collects bytes as they come and gives the messages that are whole.

    ``of`` is a message type or a union of tagged ones; ``limit`` the largest body taken from this peer, in bytes.
    """

    def __init__(self, of: object, limit: int = MAX_FRAME) -> None:
        self._decoder: msgspec.json.Decoder[MessageT] = msgspec.json.Decoder(of)
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[MessageT]:
        """Take bytes, yield each message that they complete. Raises `BadFrame`; nothing may be fed after that."""
        self._buffer += data
        while len(self._buffer) >= HEADER:
            length = int.from_bytes(self._buffer[:HEADER], "big")
            if length > self._limit:
                raise BadFrame(f"a frame of {length} bytes; at most {self._limit} are taken")
            if len(self._buffer) < HEADER + length:
                return
            body = bytes(self._buffer[HEADER : HEADER + length])
            del self._buffer[: HEADER + length]
            try:
                with _decode_errors_only():
                    message = self._decoder.decode(body)
            except msgspec.DecodeError as error:
                raise BadFrame(f"a frame that is no message: {error}", "are both sides of one version?") from error
            yield message
