"""A protocol that looks like the beginning of HTTP: reads three bytes, answers, and says back all that follows.

Run on a host as `shy_server.py PORT`.
"""

import asyncio
import os
import socket
import sys


async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A connection, to its end."""
    try:
        writer.write(b"got " + await reader.readexactly(3) + b"\r\n")
        while data := await reader.read(65536):
            writer.write(data)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port: str) -> None:
    """Serve until it is ended."""
    await asyncio.start_server(client, "0.0.0.0", int(port))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
