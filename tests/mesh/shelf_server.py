"""A small HTTP server that says what it was asked: run on a host as a unit.

    python3 shelf_server.py PORT NAME

Answers with NAME in `x-served-by` and the request in JSON. What begins with `/hang` is never answered where NAME ends
in `-v3`; `/count` says how many requests have come.
"""

import asyncio
import json
import sys


class Shelf(asyncio.Protocol):
    """One connection: requests one after the other, bodies by Content-Length."""

    name = ""
    seen = 0

    def __init__(self) -> None:
        self.bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self.bytes += data
        while b"\r\n\r\n" in self.bytes:
            head, _, rest = self.bytes.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            fields = [line.split(": ", 1) for line in lines]
            length = next((int(value) for name, value in fields if name.lower() == "content-length"), 0)
            if len(rest) < length:
                return
            body, self.bytes = rest[:length], rest[length:]
            self.answer(first.split()[0], first.split()[1], fields, body)

    def answer(self, method: str, target: str, fields: list[list[str]], body: bytes) -> None:
        """What was asked, in JSON."""
        Shelf.seen += target != "/count"
        if target.startswith("/hang") and self.name.endswith("-v3"):
            return
        headers = {name.lower(): value for name, value in fields}
        told = {"method": method, "target": target, "headers": headers, "body": body.decode(), "seen": Shelf.seen}
        text = json.dumps(told).encode()
        head = f"HTTP/1.1 200 OK\r\nx-served-by: {self.name}\r\nserver: shelf\r\ncontent-length: {len(text)}\r\n\r\n"
        self.transport.write(head.encode() + text)


async def main() -> None:
    """Serve."""
    Shelf.name = sys.argv[2]
    server = await asyncio.get_running_loop().create_server(Shelf, "0.0.0.0", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
