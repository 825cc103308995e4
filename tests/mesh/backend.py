"""A service that does as it is told, and counts: run on a host as `twin.service`.

Port 9090: HTTP/1.1; answers with the host's name. Port 9091: TCP; says the host's name, then what it hears. What it
does is read from /run/twin/does at every request: `200`, `500`, another status, `hang` (no answer), `after SECONDS`
(200, late). /run/twin/counts has the requests and connections so far.
"""

import asyncio
import contextlib
import os
import re
import socket
from pathlib import Path

DOES = Path("/run/twin/does")
FILE = os.open("/run/twin/counts", os.O_RDWR | os.O_CREAT)
NAME = socket.gethostname().encode()
counts = {"requests": 0, "connections": 0}
os.pwrite(FILE, b"0 0\n", 0)


def told_to() -> tuple[str, str, str]:
    """The word in force, and what belongs to it."""
    return DOES.read_text().strip().partition(" ")


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: requests one after the other, bodies by Content-Length."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while asked := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"\r\ncontent-length: ([0-9]+)", asked.lower())
            await reader.readexactly(int(length[1]) if length else 0)
            count("requests")
            word, _, seconds = told_to()
            if word == "hang":
                await reader.read()
                break
            if word == "after":
                await asyncio.sleep(float(seconds))
                word = "200"
            head = b"HTTP/1.1 %s Told\r\nContent-Length: %d\r\n\r\n" % (word.encode(), len(NAME))
            writer.write(head + NAME)
            await writer.drain()
    writer.close()


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: its host's name, then an echo."""
    count("connections")
    with contextlib.suppress(ConnectionError):
        writer.write(NAME + b"\n")
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    writer.close()


def count(what: str) -> None:
    """One more."""
    counts[what] += 1
    os.pwrite(FILE, b"%d %d\n" % tuple(counts.values()), 0)


async def main() -> None:
    """Serve for ever."""
    servers = [await asyncio.start_server(serve, "0.0.0.0", port) for serve, port in ((http, 9090), (tcp, 9091))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
