"""A caller of an HTTP service at a pace: run on a host as a meshed unit, prints one JSON line.

    python3 - HOST REQUESTS PER_SECOND CONNECTIONS KEYS [SOURCE...]

The requests begin at their times whatever became of those before, on as many keep-alive connections; KEYS: so many
different values of x-user, one after the other (0: none). `answers`: "STATUS WORD" to a count, the word being the body
or `x-hostmesh-error`; `by_key`: which bodies each key got; times in seconds.
"""

import asyncio
import collections
import json
import sys
import time


class Asker:
    """The requests that are still to be made, and what came of the others."""

    def __init__(self, host: str, requests: int, pace: float, keys: int) -> None:
        self.host, self.requests, self.pace, self.keys = host, requests, pace, keys
        self.next, self.begun = 0, time.monotonic()
        self.answers: collections.Counter[str] = collections.Counter()
        self.by_key: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.took: list[float] = []

    async def connection(self) -> None:
        """Takes one request after the other, each at its time."""
        reader, writer = await asyncio.open_connection(self.host, 80)
        while self.next < self.requests:
            number, self.next = self.next, self.next + 1
            await asyncio.sleep(self.begun + number / self.pace - time.monotonic())
            started = time.monotonic()
            key = number % self.keys if self.keys else 0
            writer.write(f"GET /{number} HTTP/1.1\r\nHost: {self.host}\r\nx-user: user-{key}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:-2])
            body = await reader.readexactly(int(fields["content-length"]))
            word = fields.get("x-hostmesh-error") or body.decode()
            self.answers[f"{head.split()[1]} {word}"] += 1
            self.by_key[key][word] += 1
            self.took.append(time.monotonic() - started)
        writer.close()


async def main() -> None:
    """Ask, then tell."""
    host, requests, pace, connections, keys = sys.argv[1:6]
    asker = Asker(host, int(requests), float(pace), int(keys))
    await asyncio.gather(*(asker.connection() for _ in range(int(connections))))
    told = {"answers": asker.answers, "by_key": asker.by_key, "took": sorted(asker.took)}
    print(json.dumps({**told, "lasted": time.monotonic() - asker.begun}))


asyncio.run(main())
