"""Connections that ask for a large file and read nothing of it: run on a host, until STOP_FILE is there.

    python3 - HOST PORT PATH CONNECTIONS STOP_FILE

What is on its way to them waits in buffers. A connection that is broken off is none of its troubles.
"""

import socket
import sys
import time
from pathlib import Path


def main() -> None:
    """Ask, and wait."""
    host, port, path, connections, stop = sys.argv[1:]
    address = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4]
    asking = []
    for _ in range(int(connections)):
        asking.append(socket.create_connection(address, 30))
        asking[-1].sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    print("asked", flush=True)
    while not Path(stop).exists():
        time.sleep(0.05)


main()
