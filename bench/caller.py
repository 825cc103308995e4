"""Runs inside a host of the bench, with nothing but Python: a caller that holds connections, or one that looks closely.

caller.py hold URL COUNT    COUNT keep-alive connections, one request each; says `open`, holds until its stdin ends
caller.py watch URL SECONDS asks again and again; says when (CLOCK_MONOTONIC, ns) the status became another
"""

import http.client
import sys
import time
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.001


def connection(url: str) -> http.client.HTTPConnection:
    """A connection to the URL's host, not yet open."""
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)


def status(of: http.client.HTTPConnection) -> int:
    """What the answer to one request says, read to its end."""
    of.request("GET", "/")
    answer = of.getresponse()
    answer.read()
    return answer.status


def hold(url: str, count: int) -> None:
    """Connections that were used once and stay open."""
    held = [connection(url) for _ in range(count)]
    for number, one in enumerate(held):
        if status(one) != http.client.OK:
            raise SystemExit(f"connection {number} of {count}: not 200")
    print("open", flush=True)
    sys.stdin.read()


def watch(url: str, seconds: float) -> None:
    """Each status that is not that of the request before, and when its request was sent."""
    asked, last, end = connection(url), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        sent = time.monotonic_ns()
        now = status(asked)
        if now != last:
            print(now, sent, flush=True)
        last = now
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    verb, target, number = sys.argv[1:]
    {"hold": lambda: hold(target, int(number)), "watch": lambda: watch(target, float(number))}[verb]()
