"""What must be shown of somebody on the link who forges, replays and resets: refused, counted, nothing served twice."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.closed import NOT_THE_WIRE, spoken
from tests.mesh.shows import order
from tests.mesh.told import samples, total
from tests.mesh.world import POLICIES, World

FRAMES, REPLAYER = ((Path(__file__).parent / f"{name}.py").read_text() for name in ("frames", "replayer"))
CLIENT_HELLO = b"\x16\x03\x01"  # a handshake record's head (RFC 8446, section 5.1)
OLD_SEGMENTS = (
    "PAWSEstab",
    "PAWSOldAck",
    "TCPDSACKOldSent",
    "TCPChallengeACK",
    "TCPACKSkippedSeq",
    "TCPACKSkippedPAWS",
)
SEGMENT = 1400
PLAINTEXT, SOURCE = f"{POLICIES}/nginx.service.toml:no-plaintext", "builtin:source"


def forged_sources(w: World) -> str:
    """First packets with forged sources, source routes and routing headers: no answer but a reset, each one counted"""
    from scapy.layers.inet import IP, TCP, IPOption_LSRR, IPOption_SSRR  # noqa: PLC0415 (takes a second to load)
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrRouting  # noqa: PLC0415

    v4, v6, named, named6 = w.h2.ipv4, w.h2.ipv6, w.outsider.ipv4, w.outsider.ipv6
    packets = {
        PLAINTEXT: [IP(src=w.h1.ipv4, dst=v4), IPv6(src=w.h1.ipv6, dst=v6), IPv6(src="fe80::1", dst=v6)],
        SOURCE: [
            *(IP(src=source, dst=v4) for source in (v4, "127.0.0.1", "127.3.2.1")),
            IPv6(src=v6, dst=v6),
            *(IP(src=named, dst=v4, options=[kind(routers=[v4])]) for kind in (IPOption_LSRR, IPOption_SSRR)),
            IPv6(src=named6, dst=v6) / IPv6ExtHdrRouting(type=2, addresses=[v6]),
        ],
    }
    before, cursor = refused(w.h2), w.h2.journal_cursor()
    wanted = {rule: before.get(rule, 0) + len(each) for rule, each in packets.items()}
    with w.lab.capture("tcp port 80 or ip6 proto 43") as wire:
        for each in packets.values():
            put(w, (head / TCP(sport=4711 + index, dport=80, flags="S") for index, head in enumerate(each)))
        wait_until(lambda: {r: refused(w.h2).get(r, 0) for r in wanted} == wanted, f"counted: {wanted}", 5.0, 0.1)
    attacks = [frame for frame in wire.packets() if frame.src == w.outsider.mac]
    assert len(attacks) >= sum(map(len, packets.values())), "not all attacks were on the link"
    assert not spoken(wire, w.h2), spoken(wire, w.h2)
    w.denials(w.h2, after=cursor, HOSTMESH_UNIT="nginx.service", HOSTMESH_RULE=SOURCE)
    return ", ".join(f"{rule}: {len(each)} of {len(each)}" for rule, each in packets.items())


def refused(host: Host) -> dict[str, float]:
    """Packets for nginx that the ruleset refused, by rule, as /metrics says."""
    rows = samples(host, "hostmesh_kernel_refused_packets_total", unit="nginx.service")
    return {row.labels["rule"]: row.value for row in rows}


def _failed_handshakes(host: Host) -> float:
    return total(host, "hostmesh_proxy_tls_failures_total", side="server")


def put(w: World, packets: Iterable[Any]) -> None:
    """Packets on the link, from the outsider to h2."""
    from scapy.layers.l2 import Ether  # noqa: PLC0415

    frames = [bytes(Ether(src=w.outsider.mac, dst=w.h2.mac) / packet).hex() for packet in packets]
    w.outsider.exec(["python3", "-c", FRAMES], input="\n".join(frames)).must()


def replayed(w: World) -> str:
    """All that h1 said on the wire said again, as bytes of new connections and as frames: nothing is served twice"""
    marker = f"once-{time.monotonic_ns()}"
    with w.lab.capture("tcp port 15008") as wire:
        w.h1.systemctl("restart", "hostmesh-proxy.service")  # so that a hello is seen
        url = f"http://web/{marker}"
        wait_until(lambda: w.shop("curl", "-sSo", "/dev/null", url).ok and served(w, marker), "served", 10.0, 0.05)
    times, before = served(w, marker), _failed_handshakes(w.h2)
    flights = [
        data for (_, _, _, port), data in wire.streams().items() if port == 15008 and data.startswith(CLIENT_HELLO)
    ]
    assert flights, "no hello was seen"
    ends = []
    for flight in flights:
        said = w.outsider.exec(["python3", "-c", REPLAYER, w.h2.ipv4, "15008"], input=flight.hex()).must().stdout
        answered, end = said.split()
        assert end in {"closed", "reset"} and int(answered) < 8192, said  # its own hello and an alert
        ends.append(end)
    wait_until(
        lambda: _failed_handshakes(w.h2) >= before + len(flights),
        "the hellos are counted",
        5.0,
        0.1,
    )
    old = netstat(w.h2, *OLD_SEGMENTS)
    frames = [piece for packet in wire.packets() if packet.src == w.h1.mac for piece in _segments(packet.payload)]
    put(w, frames)
    assert order(w, "7")["inventory"] == 200
    assert served(w, marker) == times, "a replay was served"
    rejected = netstat(w.h2, *OLD_SEGMENTS) - old
    assert rejected > 0, "no old segment was counted"
    return (
        f"{len(flights)} hellos with all that followed: {', '.join(ends)}, {len(flights)} counted; "
        f"{len(frames)} frames again: {rejected} rejected and counted by TCP; served {times} time, as before"
    )


def _segments(packet: Any) -> Iterator[Any]:  # noqa: ANN401 (scapy has no types)
    """As they were on a real link: the lab's hosts hand each other segments of up to 64 KB."""
    from scapy.layers.inet import TCP  # noqa: PLC0415

    said, payload = packet[TCP], bytes(packet[TCP].payload)
    head = type(packet)(src=packet.src, dst=packet.dst)
    for start in range(0, max(len(payload), 1), SEGMENT):
        seq = (said.seq + start) % 2**32
        tcp = TCP(sport=said.sport, dport=said.dport, seq=seq, ack=said.ack, flags=said.flags, options=said.options)
        yield head / tcp / payload[start : start + SEGMENT]


def served(w: World, marker: str) -> int:
    """How often nginx served it."""
    return w.h2.read("/var/log/nginx/access.log").count(marker)


def netstat(host: Host, *names: str) -> int:
    """Sum of these counters of TCP."""
    lines = [line.split() for line in host.read("/proc/net/netstat").splitlines()]
    lines += [line.split() for line in host.read("/proc/net/snmp").splitlines()]
    values = {name: int(value) for head, row in zip(lines[::2], lines[1::2], strict=True)
              for name, value in zip(head[1:], row[1:], strict=True)}  # fmt: skip
    return sum(values.get(name, 0) for name in names)


def resets(w: World) -> str:
    """Resets forged on the link: guessed ones cut nothing; one that fits cuts, and the call is made anew, by TLS"""
    from scapy.layers.inet import IP, TCP  # noqa: PLC0415

    def forge(seqs: Iterable[tuple[int, int]]) -> int:
        head = IP(src=w.h1.ipv4, dst=w.h2.ipv4)
        resets = [head / TCP(sport=port, dport=15008, flags="R", seq=seq % 2**32) for port, seq in seqs]
        put(w, resets)
        assert order(w, "7")["inventory"] == 200
        return len(resets)

    with w.lab.capture(NOT_THE_WIRE) as plain:
        expected, before = _expected_by_h2(w), netstat(w.h2, "TCPChallengeACK")
        assert expected, "no call was seen on the wire"
        guesses = forge((port, ack + off) for port, ack in expected.items() for off in (1, 1000, 20_000, -1000, 2**31))
        challenged = netstat(w.h2, "TCPChallengeACK") - before
        assert challenged > 0, "the guesses were not seen as such"
        assert expected.keys() <= _wires(w), "a guess cut a connection"
        cut = 0
        for _ in range(5):  # a word between the look and the reset, and it fits no more
            expected, before = _expected_by_h2(w), netstat(w.h2, "EstabResets")
            forge(expected.items())
            cut = netstat(w.h2, "EstabResets") - before
            if cut:
                break
        assert cut > 0 and not expected.keys() <= _wires(w), "no forged reset fitted: it proves nothing"
    assert not spoken(plain, w.h1, w.h2), spoken(plain, w.h1, w.h2)[:5]
    return (
        f"{guesses} guesses: {challenged} challenged, 0 cut; {cut} that fitted: cut, the next call 200 over TLS again"
    )


def _wires(w: World) -> set[int]:
    """The ports of h1 to which h2 has wire connections."""
    rows = w.h2.exec(["ss", "-Htn", "state", "established", "( sport = :15008 )"]).must().stdout.splitlines()
    return {int(row.rpartition(":")[2]) for row in rows}


def _expected_by_h2(w: World) -> dict[int, int]:
    """By port of h1: the next sequence number that h2 expects on a wire connection, as a call just showed it."""
    from scapy.layers.inet import TCP  # noqa: PLC0415

    with w.lab.capture("tcp src port 15008 and ip") as wire:
        assert order(w, "7")["inventory"] == 200
    return {int(p[TCP].dport): int(p[TCP].ack) for p in wire.packets() if p.src == w.h2.mac}
