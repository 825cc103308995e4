"""Puts frames on the link as they are: run on a host, hex on standard input, one frame a line."""

import socket
import sys


def main() -> None:
    """All of them, in order."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("eth0", 0))
        for line in sys.stdin:
            link.send(bytes.fromhex(line))


main()
