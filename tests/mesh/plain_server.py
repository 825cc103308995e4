"""An application of HTTP/1.1 by hand, for what libraries hide: run on a host as `plain_server.py PORT PORT…`.

Answers with what it was sent, chunked, and after it the request's trailers. `/refused`: 417 to who asks before sending
a body, which is not read then. `CONNECT HOST:PORT`: a tunnel to itself that says back what it gets.
"""

import asyncio
import os
import socket
import sys

END = b"\r\n\r\n"


async def body(reader: asyncio.StreamReader, head: bytes) -> tuple[bytes, bytes]:
    """A body, and its trailers as they came."""
    if b"transfer-encoding: chunked" not in head.lower():
        length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return await reader.readexactly(int(length[0]) if length else 0), b""
    whole = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        whole += (await reader.readexactly(size + 2))[:-2]
    trailers = b""
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        trailers += line
    return whole, trailers


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one; whether another may follow."""
    head = await reader.readuntil(END)
    if head.startswith(b"CONNECT "):
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data)
        return False
    if b"100-continue" in head.lower():
        if b" /refused " in head:
            writer.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
            return False
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    sent, trailers = await body(reader, head)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-length\r\n\r\n")
    for start in range(0, len(sent), 50_000):
        piece = sent[start : start + 50_000]
        writer.write(b"%x;part=%d\r\n%s\r\n" % (len(piece), start, piece))
        await writer.drain()
    writer.write(b"0\r\nx-length: %d\r\n%s\r\n" % (len(sent), trailers.replace(b"x-", b"x-seen-")))
    return True


async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A connection, to its end."""
    try:
        while await request(reader, writer):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(*ports: str) -> None:
    """Serve until it is ended."""
    for port in ports:
        await asyncio.start_server(client, "0.0.0.0", int(port), limit=1 << 20)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
