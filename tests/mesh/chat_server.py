"""An echo by the `websockets` library: run on a host as `chat_server.py PORT`.

Says back what it is sent, text as text, data as data. `/close`: the server closes, with a code and a reason, after the
first message. `/plain`: no WebSocket, an answer of HTTP. It sends no pings of its own and takes messages of 4 MB.
"""

import asyncio
import http
import os
import socket
import sys

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.server import WebSocketServerProtocol, serve


async def chat(connection: WebSocketServerProtocol) -> None:
    """One client."""
    await connection.send(connection.request_headers.get("x-hostmesh-peer", "nobody"))
    try:
        async for message in connection:
            await connection.send(message)
            if connection.path == "/close":
                await connection.close(4001, "as asked")
    except ConnectionClosed:
        return


async def plain(path: str, _headers: Headers) -> tuple[http.HTTPStatus, dict[str, str], bytes] | None:
    """An answer to who asks for no WebSocket."""
    return (http.HTTPStatus.OK, {"x-plain": "yes"}, b"plain\n") if path == "/plain" else None


async def main(port: str) -> None:
    """Serve until it is ended."""
    async with serve(chat, "0.0.0.0", int(port), process_request=plain, ping_interval=None, max_size=4 << 20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
