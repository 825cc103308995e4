"""Talks as soon as it lives and until it is killed, in plain text: python3 - HOST TCP_PORT UDP_PORT WORD

A new TCP connection and a datagram every few milliseconds, from before there is a mesh; each connection is kept for a
while, the first ones to the end. Who connects to its own TCP_PORT is told the word too.
"""

import contextlib
import select
import socket
import sys
import threading

FIRST, LAST, MOST = 10, 20, 200


def talk(host: str, tcp: int, udp: int, word: bytes) -> None:
    """Talk, whoever listens."""
    kept: list[socket.socket] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        while True:
            with contextlib.suppress(OSError):  # refused, no route, no buffer: said again below
                datagrams.sendto(word, (host, udp))
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((host, tcp))
            kept.append(client)
            _, ready, _ = select.select([], [client], [], 0.01)
            for sock in (*ready, *kept[:FIRST], *kept[-LAST:]):
                with contextlib.suppress(OSError):  # not connected, or not any more
                    sock.send(word)
            while len(kept) > MOST:
                kept.pop(FIRST).close()


def answer(listener: socket.socket, word: bytes) -> None:
    """Tell everybody who comes."""
    while True:
        client, _ = listener.accept()
        with contextlib.suppress(OSError), client:
            client.sendall(word)


def main() -> None:
    """Talk and answer."""
    host, tcp, udp, word = sys.argv[1:]
    listener = socket.create_server(("", int(tcp)), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=answer, args=(listener, word.encode()), daemon=True).start()
    talk(host, int(tcp), int(udp), word.encode())


main()
