"""Throws what does not belong there at listeners: run on a host, prints one JSON line at the end.

    python3 - [["unix", PATH], ["tcp", HOST, PORT], ["udp", HOST, PORT], …]

For each target and each kind of garbage: the first bytes that came back, or `closed`, `reset`, `silent`, `refused`.
"""

import json
import random
import socket
import struct
import sys

NOISE = random.Random(4711).randbytes(64 * 1024)
STREAMS = {
    "nothing": b"",
    "noise": NOISE,
    "zeros": bytes(64 * 1024),
    "a frame of 4 GB": b"\xff\xff\xff\xff" + NOISE[:1000],
    "a frame of noise": struct.pack(">I", 1000) + NOISE[:1000],
    "a frame of nesting": struct.pack(">I", 60_000) + b"[" * 60_000,
    "a frame of another shape": struct.pack(">I", 26) + b'{"type":"snapshot","id":7}',
    "HTTP": b"GET /%00/..%2f HTTP/9.9\r\nHost: \xff\r\n\r\n",
    "HTTP without end": b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000,
    "HTTP twice framed": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc0\r\n\r\n",
    "half a ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + NOISE[:40],
    "a TLS record of noise": b"\x16\x03\x03\x3f\xff" + NOISE[:16383],
    "HTTP/2 and noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NOISE[:5000],
    "SSH": b"SSH-2.0-probe\r\n",
}
HEADER = b"\x12\x34\x01\x00"
DATAGRAMS = {
    "nothing": b"",
    "a byte": b"\x00",
    "noise": NOISE[:512],
    "zeros": bytes(512),
    "a header alone": HEADER + b"\x00\x01" + bytes(6),
    "65535 of all": HEADER + b"\xff" * 8,
    "a name that is its own end": HEADER + b"\x00\x01" + bytes(6) + b"\xc0\x0c\x00\x01\x00\x01",
    "a label too long": HEADER + b"\x00\x01" + bytes(6) + b"\x7f" + b"a" * 127 + b"\x00\x00\x01\x00\x01",
    "an answer": b"\x12\x34\x81\x80\x00\x00\x00\x01" + bytes(4) + b"\x00\x00\x01\x00\x01" + bytes(10),
    "large": NOISE[:9000],
}


def stream(target: list[object], data: bytes) -> str:
    """Send all of it, say the end, listen."""
    family = {"unix": socket.AF_UNIX, "tcp": socket.AF_INET}[str(target[0])]
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.5)
        try:
            connection.connect(target[1] if family == socket.AF_UNIX else (target[1], target[2]))
        except ConnectionResetError:
            return "reset"  # it was faster than our look at what came of it
        except OSError:
            return "refused"
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up already: what it said is there all the same
        return heard(connection)


def datagram(target: list[object], data: bytes) -> str:
    """Send it, listen."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(0.1)
        connection.connect((target[1], target[2]))
        connection.send(data)
        return heard(connection)


def heard(connection: socket.socket) -> str:
    """The first answer."""
    try:
        answer = connection.recv(4096)
    except TimeoutError:
        return "silent"
    except OSError:
        return "reset"
    return answer[:200].decode("latin-1") or "closed"


def main() -> None:
    """Everything at everybody."""
    said = {}
    for target in json.loads(sys.argv[1]):
        throw, garbage = (datagram, DATAGRAMS) if target[0] == "udp" else (stream, STREAMS)
        said[" ".join(map(str, target))] = {name: throw(target, data) for name, data in garbage.items()}
    print(json.dumps(said))


main()
