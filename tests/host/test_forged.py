"""Attacks on a real kernel: a thief in the unit's own port group, forged marks, forged addresses, source routes."""

import contextlib
import ctypes
import itertools
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from nftables import Nftables

from hostmesh.plan.redirect_sets import COUNTERS
from tests.host.plans import INBOUND, NUMBER, OUTBOUND, SETTINGS, SLICE, Bench, plan, policy
from tests.host.world import HERE4, HERE6, PEER4, PEER6, World, ask, in_world

pytestmark = pytest.mark.kernel
FOREIGN4, FOREIGN6 = "198.18.200.9", "2001:2:200::9"
PROXY_UID = 997
TRIES = 32
_SO_ATTACH_REUSEPORT_CBPF, _IP_TRANSPARENT, _IPV6_TRANSPARENT = 51, 19, 75
_DICE = ((0x20, 0xFFFFF038), (0x54, 1), (0x16, 0))  # ld random; and #1; ret a (linux/filter.h): one of two, by chance


def meshed(world: World, tmp_path: Path, *, proxy_uid: int = 0, **options: object) -> Bench:
    world.cgroup(SLICE)
    bench = Bench(tmp_path)
    bench.apply(plan(policy(**options), proxy_uid=proxy_uid))  # type: ignore[arg-type]
    return bench


def member(address: str) -> socket.socket:
    """A listener on 8080 that others of its user may join."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((address, 8080))
    made.listen(64)
    return made


def own(ready: int, address: str, speaks: bool) -> None:
    """The unit itself: greets everybody, or answers each who sends."""
    with member(address) as server:
        os.write(ready, b"ok")
        while True:
            client, _ = server.accept()
            with client:
                if not speaks:
                    client.recv(100)
                client.sendall(b"own")


def thief(ready: int, address: str, speaks: bool, dice: bool) -> list[bytes]:
    """Joins the group, greets everybody who comes if he ``speaks``, and gives all that he was told.

    dice: has the kernel choose anew whenever it looks, so that who is checked is not who gets the connection.
    """
    told = []
    with member(address) as server:
        if dice:
            program = b"".join(struct.pack("=HBBI", code, 0, 0, value) for code, value in _DICE)
            kept = ctypes.create_string_buffer(program)
            attach = struct.pack("HxxxxxxP", len(_DICE), ctypes.addressof(kept))
            server.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, attach)
        os.write(ready, b"ok")
        server.settimeout(1)
        while True:
            try:
                client, _ = server.accept()
            except TimeoutError:
                return told
            with client:
                client.settimeout(0.1)
                try:
                    if speaks:
                        client.sendall(b"forged")
                    told.append(client.recv(100))
                except OSError:
                    told.append(b"")


def deliver(address: str, source: str, word: bytes) -> list[bytes]:
    """As the proxy does, often; what was answered to each, ``b""`` where nothing was."""
    answers = []
    for _ in range(TRIES):
        level, option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if ":" in address else (0, _IP_TRANSPARENT)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
            client.settimeout(0.2)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, INBOUND)
            client.setsockopt(level, option, 1)
            client.bind((source, 0))
            try:
                client.connect((address, 8080))
                client.sendall(word)
                answers.append(client.recv(100))
            except (ConnectionResetError, ConnectionRefusedError, BrokenPipeError, TimeoutError):
                answers.append(b"")
    return answers


@pytest.mark.parametrize(
    ("thiefs_cgroup", "dice", "speaks"),
    [
        ("system.slice/thief.service", False, False),
        ("system.slice/thief.service", True, False),
        ("mesh.slice/mesh-other.slice", True, True),
    ],
)
def test_a_thief_in_the_units_port_group_is_told_nothing_and_not_heard(
    tmp_path: Path, thiefs_cgroup: str, dice: bool, speaks: bool
) -> None:
    def test(world: World) -> None:
        bench = meshed(world, tmp_path)
        world.cgroup(thiefs_cgroup)
        for here, foreign in ((HERE4, FOREIGN4), (HERE6, FOREIGN6)):
            world.start_ready(own, here, speaks, cgroup=SLICE)
            stolen = world.start_ready(thief, here, speaks, dice, cgroup=thiefs_cgroup)
            answers = world.run(deliver, here, foreign, b"" if speaks else b"secret")
            told = stolen()
            assert set(answers) == {b"own", b""}
            assert set(told) <= {b""}, told
            assert bool(told) is dice, "by hash, who is checked is who gets it"
        assert bench.nft.counters(COUNTERS)["refused_listener"][NUMBER] >= TRIES // 2

    in_world(test)


def as_user(uid: int, call: Callable[..., object], *args: object) -> object:
    """With that user's number on its sockets, and still with CAP_NET_RAW."""
    ctypes.CDLL(None).setfsuid(uid)
    return call(*args)


def test_only_the_proxys_user_delivers(tmp_path: Path) -> None:
    def test(world: World) -> None:
        bench = meshed(world, tmp_path, proxy_uid=PROXY_UID)
        for here, foreign, local in ((HERE4, FOREIGN4, "127.0.0.1"), (HERE6, FOREIGN6, "::1")):
            world.serve(here, 8080, cgroup=SLICE)
            world.serve(local, 8080, cgroup=SLICE)
            assert world.run(as_user, PROXY_UID, ask, here, 8080, foreign, INBOUND)["peer"] == foreign
            for mark in (INBOUND, INBOUND | SETTINGS.marks.delivered, INBOUND | SETTINGS.marks.proxy):
                for address, source in ((here, foreign), (here, ""), (local, local)):
                    seen = world.run(ask, address, 8080, source, mark, 0.3)
                    assert not isinstance(seen, dict), (address, source, hex(mark))
        assert bench.nft.counters(COUNTERS)["refused_plaintext"][NUMBER] >= 12

    in_world(test)


def test_a_mark_makes_nobody_a_unit_and_no_unit_anybody_else(tmp_path: Path) -> None:
    """With CAP_NET_RAW: what others mark as a unit's is not the proxy's, and what a unit marks is it as its own."""
    marks = SETTINGS.marks
    more = (0, marks.proxy, marks.inbound, marks.allowed, marks.delivered, marks.inbound | marks.delivered)

    def test(world: World) -> None:
        meshed(world, tmp_path, proxy_uid=PROXY_UID)
        world.serve("127.0.0.1", 15001, transparent=True)
        world.serve("127.0.0.1", 81, cgroup=world.cgroup("system.slice/other.service"))
        for bits in more:
            for cgroup in ("", "system.slice/other.service"):
                assert not world.run(connects, "127.0.0.1", 82, OUTBOUND | bits, cgroup=cgroup), (cgroup, hex(bits))
            for mark in (bits | NUMBER, OUTBOUND + 1 | bits):
                seen = world.run(ask, "127.0.0.1", 81, "", mark, 0.3, cgroup=SLICE)
                assert not isinstance(seen, dict) or seen["mark"] == OUTBOUND, (hex(mark), seen)
        assert world.run(ask, "127.0.0.1", 81, cgroup=SLICE)["to"] == ("127.0.0.1", 81)

    in_world(test)


def connects(address: str, port: int, mark: int) -> bool:
    """Is there one who answers, though he may say nothing?"""
    with socket.socket() as client:
        client.settimeout(0.3)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        return client.connect_ex((address, port)) == 0


def test_no_mark_leads_a_unit_past_the_guard(tmp_path: Path) -> None:
    """Whatever bits it gives its packets, of whatever kind, and were its user the proxy's: none leaves as allowed."""
    spy = f"""
    table inet spy {{
        chain leaving {{
            type filter hook postrouting priority 300
            oifname "wire" meta mark & {SETTINGS.marks.allowed:#x} != 0 counter
        }}
    }}
    """

    def leaving(nft: Nftables) -> int:
        _, listed, _ = nft.cmd("list table inet spy")
        [packets] = re.findall(r"counter packets (\d+)", listed)
        return int(packets)

    def test(world: World) -> None:
        meshed(world, tmp_path, proxy_uid=PROXY_UID, outbound=())
        nft = Nftables()
        code, _, error = nft.cmd(spy)
        assert code == 0, error
        packets = all_kinds()
        sent = world.run(send_with_all_marks, packets, cgroup=world.cgroup("system.slice/other.service"))
        assert leaving(nft) >= sent // 4, "it sees those of others"
        before = leaving(nft)
        for uid in (0, PROXY_UID):
            assert world.run(as_user, uid, send_with_all_marks, packets, cgroup=SLICE) == sent
        assert leaving(nft) == before

    in_world(test)


def all_kinds() -> list[bytes]:
    """Packets for the peer that no unit may send it."""
    from scapy.layers.inet import IP, TCP, UDP  # noqa: PLC0415 (takes a second to load)

    to = IP(src=HERE4, dst=PEER4)
    kinds = [to / TCP(sport=4711, dport=80, flags=flags) / b"secret" for flags in ("S", "SA", "A", "R", "RA", "F")]
    kinds += [to / UDP(sport=port, dport=4711) / b"secret" for port in (4712, SETTINGS.ports.dns)]
    return [bytes(kind) for kind in kinds]


def send_with_all_marks(packets: Sequence[bytes]) -> int:
    """Each with every mixture of our bits, by the link; how many."""
    marks = SETTINGS.marks
    bits = (marks.outbound, marks.proxy, marks.inbound, marks.allowed, marks.delivered)
    mixtures = [sum(some) for count in range(len(bits) + 1) for some in itertools.combinations(bits, count)]
    for mixture, packet in itertools.product(mixtures, packets):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wire")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mixture | NUMBER)
            with contextlib.suppress(PermissionError):  # refused at once
                raw.sendto(packet, (PEER4, 0))
    return len(mixtures) * len(packets)


def send(packet: bytes, to: str) -> None:
    """A packet with a header of its own."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (to, 0))


def forged() -> dict[str, bytes]:
    """First packets to port 8080 whose source is not who sent them, or whose answers would go round."""
    from scapy.layers.inet import IP, TCP, IPOption_LSRR, IPOption_SSRR  # noqa: PLC0415 (takes a second to load)
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrRouting  # noqa: PLC0415

    syn = TCP(sport=4711, dport=8080, flags="S")
    return {
        "loose route": bytes(IP(src=PEER4, dst=HERE4, options=[IPOption_LSRR(routers=[HERE4])]) / syn),
        "strict route": bytes(IP(src=PEER4, dst=HERE4, options=[IPOption_SSRR(routers=[HERE4])]) / syn),
        "routing header": bytes(IPv6(src=PEER6, dst=HERE6) / IPv6ExtHdrRouting(type=2, addresses=[HERE6]) / syn),
        "this host": bytes(IP(src=HERE4, dst=HERE4) / syn),
        "loopback": bytes(IP(src="127.3.2.1", dst=HERE4) / syn),
        "this host, IPv6": bytes(IPv6(src=HERE6, dst=HERE6) / syn),
    }


def test_source_routes_and_forged_addresses_are_refused_and_counted(tmp_path: Path) -> None:
    """Also where the network's settings let source routes in, and a policy names the network that is forged."""

    def test(world: World) -> None:
        bench = meshed(world, tmp_path, plaintext=("198.18.0.0/16", "2001:2::/32"))
        for link in ("all", "wire"):
            Path(f"/proc/sys/net/ipv4/conf/{link}/accept_source_route").write_text("1")
        proxy = world.cgroup("system.slice/proxy.service")
        for address, at in (("127.0.0.1", HERE4), ("::1", HERE6)):
            world.serve(address, 15006, cgroup=proxy, transparent=True)
            world.serve(at, 8080, cgroup=SLICE)
            assert isinstance(world.run(ask, at, 8080, peer=True), dict), "who comes straight is heard"
        for count, (name, packet) in enumerate(forged().items(), 1):
            world.run(send, packet, HERE6 if packet[0] >> 4 == 6 else HERE4, peer=True)
            assert bench.nft.counters(COUNTERS)["refused_source"] == {NUMBER: count}, name

    in_world(test)
