"""Fuzzes messages between agent, controller, proxy and command line. The first byte chooses the kind."""

import msgspec

from hostmesh.wire import agent_control, controller, proxy_control
from hostmesh.wire.codec import HEADER, BadFrame, FrameReader, decode, encode

LIMIT = 1 << 16
FRAMED = (agent_control.Request, agent_control.Answer, proxy_control.Request, proxy_control.Answer)
BODIES = (
    controller.EnrolRequest,
    controller.EnrolReply,
    controller.RenewRequest,
    controller.SignRequest,
    controller.SignReply,
    controller.PublishRequest,
    controller.PublishReply,
    controller.WatchRequest,
    controller.WatchEvent,
)


def one(data: bytes) -> None:
    """One stream of frames, one body, or one join token."""
    if not data:
        return
    kind, data = data[0] % (len(FRAMED) + len(BODIES) + 1), data[1:]
    if kind < len(FRAMED):
        framed(FRAMED[kind], data)
    elif kind < len(FRAMED) + len(BODIES):
        body(BODIES[kind - len(FRAMED)], data)
    else:
        token(data)


def framed(kind: object, data: bytes) -> None:
    """Whole or in pieces the same messages come, and each can be written and read again."""
    whole, pieces = messages(kind, data, len(data) or 1), messages(kind, data, 3)
    assert whole == pieces, "cuts change the messages"
    for message in whole[0]:
        assert isinstance(message, msgspec.Struct)
        assert messages(kind, encode(message), 1 << 20) == ([message], True)


def messages(kind: object, data: bytes, size: int) -> tuple[list[object], bool]:
    """What comes out, and whether the stream could go on."""
    reader, found = FrameReader[object](kind, limit=LIMIT), list[object]()
    try:
        for start in range(0, len(data), size):
            found += reader.feed(data[start : start + size])
    except BadFrame:
        return found, False
    assert len(reader._buffer) < HEADER + LIMIT
    return found, True


def body(kind: type[msgspec.Struct], data: bytes) -> None:
    """A message of the controller's API."""
    try:
        message = decode(data, kind)
    except msgspec.MsgspecError:
        return
    assert decode(msgspec.json.encode(message), kind) == message


def token(data: bytes) -> None:
    """A join token."""
    try:
        found = controller.read_token(data.decode("utf-8", "replace"))
    except ValueError:
        return
    assert controller.read_token(controller.write_token(found)) == found
