"""A caller that tells exactly how it was refused: run on a host, prints one JSON line.

python3 - HOST PORT REQUEST [SOURCE]    connects, sends, reads; prints errno, first line and seconds
"""

import errno
import json
import socket
import sys
import time


def main() -> None:
    """Try once, and tell."""
    host, port, request, *source = sys.argv[1:]
    started = time.monotonic()
    said = {"errno": "", "first": ""}
    try:
        with socket.create_connection((host, int(port)), 10, (source[0], 0) if source else None) as sock:
            sock.sendall(request.encode().decode("unicode_escape").encode())
            said["first"] = sock.recv(4096).split(b"\r\n")[0].decode(errors="replace")
    except OSError as error:
        said["errno"] = errno.errorcode.get(error.errno or 0, type(error).__name__)
    print(json.dumps({**said, "seconds": round(time.monotonic() - started, 3)}))


main()
