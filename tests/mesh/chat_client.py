"""A client of `chat_server.py`, by the `websockets` library: run on a host, prints what came of it as one JSON line.

    python3 - HOST:PORT WAY [SECONDS]

`talk`: text, data, a large message, a ping, then the client closes. `closed`: the server closes. `quiet`: nothing for
so many seconds, then a message. `held`: says "open", then waits for an end; how it ended.
"""

import asyncio
import json
import os
import sys
import time

from websockets.client import WebSocketClientProtocol, connect
from websockets.exceptions import ConnectionClosed

LARGE = 1 << 20


async def talk(connection: WebSocketClientProtocol) -> dict[str, object]:
    """All kinds of message."""
    said: dict[str, object] = {}
    for name, message in (("text", "grüße"), ("data", bytes(range(256))), ("large", os.urandom(LARGE)), ("empty", "")):
        await connection.send(message)
        said[name] = await connection.recv() == message
    begun = time.monotonic()
    await (await connection.ping())
    said["ping"] = time.monotonic() - begun
    await connection.close(1000, "done")
    return said | {"code": connection.close_code}


async def closed(connection: WebSocketClientProtocol) -> dict[str, object]:
    """The server's close, with its code and reason."""
    await connection.send("close, please")
    await connection.recv()
    await connection.wait_closed()
    return {"code": connection.close_code, "reason": connection.close_reason}


async def quiet(connection: WebSocketClientProtocol, seconds: float) -> dict[str, object]:
    """Nothing, for long, then a message."""
    await asyncio.sleep(seconds)
    await connection.send("still there")
    return {"said": await connection.recv()}


async def held(connection: WebSocketClientProtocol) -> dict[str, object]:
    """How a connection ends in which nothing is said."""
    print("open", flush=True)
    begun = time.monotonic()
    try:
        await asyncio.wait_for(connection.recv(), 20)
    except ConnectionClosed:
        return {"code": connection.close_code, "seconds": time.monotonic() - begun}
    return {}


async def main(where: str, way: str, *rest: str) -> None:
    """One connection."""
    path = "/close" if way == "closed" else "/"
    async with connect(f"ws://{where}{path}", ping_interval=None, max_size=4 << 20) as connection:
        peer = await connection.recv()
        match way:
            case "talk":
                said = await talk(connection)
            case "closed":
                said = await closed(connection)
            case "quiet":
                said = await quiet(connection, float(rest[0]))
            case _:
                said = await held(connection)
    print(json.dumps({"peer": peer, **said}))


asyncio.run(main(*sys.argv[1:]))
