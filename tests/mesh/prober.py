"""Tries to talk, all at once, and tells how it went: python3 - TRIES

TRIES: JSON, {name: ["tcp" | "udp", host, port]}. One JSON line, {name: outcome}: the first line of an answer, the name
of the error, ``mute`` (connected, and nothing came) or ``silent`` (nothing at all).
"""

import errno
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 1.5


def attempt(kind: str, host: str, port: int) -> str:
    """One try."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        connected = False
        try:
            client.connect((host, port))
            connected = kind == "tcp"
            client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            return client.recv(4096).split(b"\r\n")[0].decode(errors="replace")
        except TimeoutError:
            return "mute" if connected else "silent"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, type(error).__name__)


def main() -> None:
    """All tries."""
    tries = json.loads(sys.argv[1])
    with ThreadPoolExecutor(len(tries)) as threads:
        outcomes = threads.map(lambda one: attempt(*one), tries.values())
        print(json.dumps(dict(zip(tries, outcomes, strict=True))))


main()
