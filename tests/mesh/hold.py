"""Connections that are held open, and requests that wait behind them: run on a host, prints one JSON line at the end.

    python3 - HOST PORT HELD WAITING STOP_FILE

Opens HELD connections that say nothing, then WAITING ones that ask; until STOP_FILE is there none of the first is
closed. `early` answers came before that, `answered` in all, `slowest` seconds after it.
"""

import json
import socket
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Hold, ask, let go, tell."""
    host, port, held, waiting, stop = sys.argv[1:]
    address = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4]
    silent = [socket.create_connection(address, 60) for _ in range(int(held))]
    answered: list[float] = []

    def ask() -> None:
        with socket.create_connection(address, 60) as asking:
            asking.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if asking.recv(12) == b"HTTP/1.1 200":
                answered.append(time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(int(waiting))]
    for thread in threads:
        thread.start()
    print("held", flush=True)
    while not Path(stop).exists():
        time.sleep(0.05)
    let_go = time.monotonic()
    for connection in silent:
        connection.close()
    for thread in threads:
        thread.join()
    early = sum(at < let_go for at in answered)
    slowest = max([at - let_go for at in answered], default=0.0)
    print(json.dumps({"answered": len(answered), "early": early, "slowest": round(slowest, 3)}))


main()
