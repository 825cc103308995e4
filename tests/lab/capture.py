"""Turns what passes over the lab's switch into frames that a test can search.

The socket is bound before the ``with`` body runs, so the kernel queues everything from then on; and a frame
that the kernel had to drop fails the capture, because an incomplete capture proves no absence.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.lab import namespaces as ns

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_STATISTICS = 6
_PACKET_MR_PROMISC = 1
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 256 * 1024 * 1024
_QUIET_SECONDS = 0.05


class CaptureIncompleteError(AssertionError):
    """Frames passed that the capture did not get."""


@dataclass
class Capture:
    """Frames seen on the switch, in order, whole; complete once the ``with`` has ended."""

    frames: list[bytes] = field(default_factory=list)

    def packets(self) -> list[Any]:
        """The frames as scapy packets."""
        from scapy.layers.l2 import Ether  # noqa: PLC0415 (takes a second to load)

        return [Ether(frame) for frame in self.frames]

    def streams(self) -> dict[tuple[str, int, str, int], bytes]:
        """The TCP payload of each direction, put in order: {(source, port, destination, port): bytes}.

        A direction begins with the first byte that was seen; retransmissions count once.
        """
        from scapy.layers.inet import IP, TCP  # noqa: PLC0415
        from scapy.layers.inet6 import IPv6  # noqa: PLC0415

        pieces: dict[tuple[str, int, str, int], dict[int, bytes]] = {}
        for packet in self.packets():
            if TCP not in packet:
                continue
            layer, tcp = packet[IP] if IP in packet else packet[IPv6], packet[TCP]
            payload = _tcp_payload(bytes(packet), layer, tcp)
            if payload:
                way = (str(layer.src), int(tcp.sport), str(layer.dst), int(tcp.dport))
                pieces.setdefault(way, {})[int(tcp.seq)] = payload
        return {way: _in_order(parts) for way, parts in pieces.items()}

    def contains(self, needle: bytes) -> bool:
        """Did ``needle`` pass in the clear: within any frame, or across the segments of a TCP direction?"""
        if any(needle in frame for frame in self.frames):
            return True
        return any(needle in stream for stream in self.streams().values())


def _tcp_payload(frame: bytes, layer: Any, tcp: Any) -> bytes:  # noqa: ANN401 (scapy has no types)
    """The segment without Ethernet padding; lengths from the IP header, 14 bytes of Ethernet before it."""
    if layer.version == 4:
        start, end = 14 + layer.ihl * 4, 14 + layer.len
    else:
        start, end = 14 + 40, 14 + 40 + layer.plen
    return frame[start + tcp.dataofs * 4 : end]


def _in_order(parts: dict[int, bytes]) -> bytes:
    """Segments by sequence number, which may wrap (RFC 9293 section 3.4)."""
    first = next(iter(parts))
    stream = bytearray()
    origin: int | None = None
    for offset, data in sorted((_distance(first, seq), data) for seq, data in parts.items()):
        origin = offset if origin is None else origin
        known = len(stream) - (offset - origin)
        stream += data[max(known, 0) :]
    return bytes(stream)


def _distance(first: int, seq: int) -> int:
    return (seq - first + 0x8000_0000) % 0x1_0000_0000 - 0x8000_0000


@contextlib.contextmanager
def capturing(netns: str, interface: str, bpf_filter: str | None) -> Iterator[Capture]:
    """Capture on ``interface`` of ``netns``; ``bpf_filter`` is tcpdump's language, pcap-filter(7)."""
    with ThreadPoolExecutor(1) as elsewhere:  # setns(2) moves one thread; this one ends with its socket made
        sniffer = elsewhere.submit(_open, netns, interface, bpf_filter).result()
    capture, stop = Capture(), threading.Event()
    reader = threading.Thread(target=_read, args=(sniffer, capture, stop), name="lab-capture")
    with sniffer:
        reader.start()
        try:
            yield capture
        finally:
            stop.set()
            reader.join()
        _, dropped = struct.unpack("II", sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    if dropped:
        raise CaptureIncompleteError(f"the kernel dropped {dropped} frames of this capture; give it a narrower filter")


def _open(netns: str, interface: str, bpf_filter: str | None) -> socket.socket:
    ns.set_netns(netns)
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: nothing arrives before bind
    try:
        sniffer.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        if bpf_filter:
            _attach(sniffer, bpf_filter)
        membership = struct.pack("iHH8s", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0, b"")
        sniffer.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        sniffer.bind((interface, _ETH_P_ALL))
    except BaseException:
        sniffer.close()
        raise
    return sniffer


def _attach(sniffer: socket.socket, bpf_filter: str) -> None:
    from scapy.arch.common import compile_filter  # noqa: PLC0415

    program = compile_filter(bpf_filter, linktype=1)
    sniffer.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


def _read(sniffer: socket.socket, capture: Capture, stop: threading.Event) -> None:
    """Read until told to stop, then until nothing has come for a moment: frames may still be on their way."""
    while True:
        ready, _, _ = select.select([sniffer], [], [], _QUIET_SECONDS)
        if ready:
            capture.frames.append(sniffer.recv(0x1_0100))
        elif stop.is_set():
            return
