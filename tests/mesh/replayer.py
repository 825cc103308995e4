"""Says again what another said: run on a host, hex on standard input. python3 - HOST PORT

Prints what came of it: the bytes that were answered, and ``closed``, ``reset`` or ``open``.
"""

import socket
import sys


def main() -> None:
    """Say it all, and listen until the end."""
    host, port = sys.argv[1:]
    words, answered = bytes.fromhex(sys.stdin.read()), 0
    with socket.create_connection((host, int(port)), 5) as client:
        try:
            client.sendall(words)
            while part := client.recv(65536):
                answered += len(part)
            end = "closed"
        except TimeoutError:
            end = "open"
        except ConnectionError:
            end = "reset"
    print(answered, end)


main()
