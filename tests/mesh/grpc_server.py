"""A service of grpcio, without generated code: every message is bytes. Run as `grpc_server.py PORT`."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

CANCELLED: list[str] = []


async def unary(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """The message back, with who called."""
    metadata = dict(context.invocation_metadata() or ())
    await context.send_initial_metadata((("x-peer", metadata.get("x-hostmesh-peer", "")),))
    context.set_trailing_metadata((("x-length", str(len(request))),))
    return request


async def down(request: bytes, _context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """So many messages."""
    for index in range(int(request)):
        yield str(index).encode()


async def up(messages: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> bytes:
    """How many came, and their bytes."""
    lengths = [len(message) async for message in messages]
    return f"{len(lengths)} {sum(lengths)}".encode()


async def both(messages: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """Each back as it comes."""
    async for message in messages:
        yield message


async def never(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    """Answers nothing, and keeps who was cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        CANCELLED.append(request.decode())
        raise
    return b""


async def cancelled(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    """Whose calls were cancelled here."""
    return " ".join(CANCELLED).encode()


async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Fails with the status that was asked for."""
    await context.abort(grpc.StatusCode[request.decode()], "as asked")
    return b""


async def late(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    """``HOST SECONDS``: this host's name, so late where it is that one."""
    host, seconds = request.decode().split()
    if host == socket.gethostname():
        await asyncio.sleep(float(seconds))
    return socket.gethostname().encode()


FAILS_LEFT: dict[str, int] = {}


async def flaky(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """``KEY N``: UNAVAILABLE the first N times, then how often it was asked."""
    key, times = request.decode().split()
    count = FAILS_LEFT[key] = FAILS_LEFT.get(key, 0) + 1
    if count <= int(times):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return str(count).encode()


async def reflect(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """What it was asked, and the name of who was asked (its file's), in JSON."""
    metadata = {name: str(value) for name, value in context.invocation_metadata() or ()}
    return json.dumps({"by": Path(sys.argv[0]).stem, "metadata": metadata, "message": request.decode()}).encode()


async def main(port: str) -> None:
    """Serves until it is ended."""
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 5000)])
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Secret": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Never": grpc.unary_unary_rpc_method_handler(never),
        "Cancelled": grpc.unary_unary_rpc_method_handler(cancelled),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Late": grpc.unary_unary_rpc_method_handler(late),
        "Flaky": grpc.unary_unary_rpc_method_handler(flaky),
        "Told": grpc.unary_unary_rpc_method_handler(reflect),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Echo", handlers),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    await server.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    await server.wait_for_termination()


asyncio.run(main(sys.argv[1]))
