"""Kernel refusals, read from datagrams built as the kernel builds them, around packets that scapy made."""

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.packet import Packet, Raw

from hostmesh.apply.nlmsg import messages
from hostmesh.observe.nflog import Refusal, bind_request, packet, refusals


def attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return (struct.pack("=HH", size, kind) + value).ljust((size + 3) & ~3, b"\0")


def log_message(prefix: str, payload: bytes, mark: int = 7) -> bytes:
    body = struct.pack("!BBH", 2, 0, 7300)
    body += attribute(1, struct.pack("!HBB", 0x0800, 1, 0))
    body += attribute(2, struct.pack("!I", mark))
    body += attribute(9, payload)
    body += attribute(10, prefix.encode() + b"\0")
    return struct.pack("=IHHII", 16 + len(body), 4 << 8, 0, 0, 0) + body


def test_every_message_of_a_datagram_is_read() -> None:
    first = IP(src="198.18.0.9", dst="198.18.0.1") / TCP(sport=40000, dport=8080, flags="S")
    second = IPv6(src="2001:2::9", dst="2001:2::1") / UDP(sport=5353, dport=53) / Raw(b"q")
    datagram = log_message("hostmesh plaintext", bytes(first)) + log_message("hostmesh outbound", bytes(second), 12)
    assert list(refusals(datagram)) == [
        Refusal("hostmesh plaintext", 6, "198.18.0.9", 40000, "198.18.0.1", 8080, 7),
        Refusal("hostmesh outbound", 17, "2001:2::9", 5353, "2001:2::1", 53, 12),
    ]


@pytest.mark.parametrize(
    ("sent", "protocol", "ports"),
    [
        (IP(src="198.18.0.9", dst="198.18.0.1", options=b"\x94\x04\0\0") / TCP(sport=1, dport=2), 6, (1, 2)),
        (IP(src="198.18.0.9", dst="198.18.0.1") / ICMP(), 1, (0, 0)),
        (IP(src="198.18.0.9", dst="198.18.0.1", frag=100) / Raw(b"\0\1\0\2" * 4), 0, (0, 0)),
        (IPv6(src="2001:2::9", dst="2001:2::1") / IPv6ExtHdrHopByHop() / TCP(sport=3, dport=4), 6, (3, 4)),
    ],
    ids=["options", "icmp", "later fragment", "hop-by-hop"],
)
def test_headers_between_addresses_and_ports(sent: Packet, protocol: int, ports: tuple[int, int]) -> None:
    read = packet("x", bytes(sent))
    assert read
    assert (read.protocol, (read.source_port, read.destination_port)) == (protocol, ports)


def test_what_is_cut_short_gives_no_ports_and_no_error() -> None:
    whole = bytes(IP(src="198.18.0.9", dst="198.18.0.1") / TCP(sport=40000, dport=8080))
    assert packet("x", whole[:22]) == Refusal("x", 6, "198.18.0.9", 0, "198.18.0.1", 0)
    assert packet("x", whole[:19]) is None
    assert packet("x", b"") is None
    datagram = log_message("hostmesh plaintext", whole)
    for end in range(len(datagram)):
        assert list(refusals(datagram[:end])) == []


def test_bind_request_is_one_aligned_message_for_the_group() -> None:
    request = bind_request(7300)
    assert len(request) % 4 == 0
    ((kind, _, body),) = messages(request)
    assert kind == 4 << 8 | 1
    assert struct.unpack_from("!BBH", body) == (0, 0, 7300)
