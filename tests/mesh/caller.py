"""A caller that goes on calling until it is cut off: run on a host, prints "open", and at the end one JSON line.

    python3 - HOST PORT ping|stream [BESIDE]     `-`: as many BESIDE connections are opened too, and only held

`ping`: asks and reads the answer, again and again, on one connection (`PING`, as redis answers it). `stream`: one
response that does not end. `how`: the errno, or "end"; `at`: seconds since the epoch; `beside`: how many
of the others were cut off as well.
"""

import errno
import json
import resource
import socket
import sys
import time
from collections.abc import Iterator

LIMIT = 60.0
STREAM = b"GET /endless HTTP/1.1\r\nHost: web\r\n\r\n"


def ping(connection: socket.socket) -> Iterator[int]:
    """Every answer must be whole."""
    while True:
        connection.sendall(b"PING\r\n")
        answer = b""
        while len(answer) < 7:
            more = connection.recv(7 - len(answer))
            if not more:
                return
            answer += more
        if answer != b"+PONG\r\n":
            raise ValueError(answer)
        yield 1


def stream(connection: socket.socket) -> Iterator[int]:
    """As fast as it comes, nearly: what its own host had received before a denial still arrives."""
    connection.sendall(STREAM)
    while more := connection.recv(1024 * 1024):
        if b"HTTP/1.1 4" in more or b"HTTP/1.1 5" in more:
            raise ValueError(more)
        yield len(more)


def main() -> None:
    """Call until it ends."""
    host, port, what, *beside = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    address = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4]
    others = [socket.create_connection(address, 10) for _ in range(int(beside[0]) if beside else 0)]
    for other in others:
        other.sendall(b"PING\r\n")
        other.recv(7)
    connection = socket.create_connection(address, 10)
    how, passed, slowest, began = "end", 0, 0.0, time.monotonic()
    try:
        before = began
        for passes in {"ping": ping, "stream": stream}[what](connection):
            if not passed:
                print("open", flush=True)
            passed += passes
            now = time.monotonic()
            slowest, before = max(slowest, now - before), now
            if now - began > LIMIT:
                how = "never"
                break
            time.sleep(0.005)  # this is its pace
    except OSError as error:
        how = errno.errorcode.get(error.errno or 0, type(error).__name__)
    at, cut = time.time(), 0
    for other in others:
        other.settimeout(5)
        try:
            cut += not other.recv(1)
        except ConnectionResetError:
            cut += 1
        except TimeoutError:
            pass
    print(json.dumps({"how": how, "at": at, "passed": passed, "slowest": round(slowest, 4), "beside": cut}))


main()
