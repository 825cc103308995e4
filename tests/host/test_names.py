"""Host names of ``[outbound] allow`` on a real kernel: the look-up through the unit's own DNS is what opens the way."""

import errno
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from hostmesh.apply.proxy import ProxyClient
from hostmesh.errors import Place
from hostmesh.policy.words import destination
from tests.host.plans import SLICE, policy
from tests.host.test_proxy import meshed, query, resolve, resolve_by_tcp
from tests.host.world import PEER4, PEER6, World, ask, ask_udp, in_world, listener
from tests.lab import namespaces as ns

pytestmark = pytest.mark.kernel
OTHER = "198.18.7.3"
LIAR = "198.18.7.4"
A, AAAA = 1, 28
REFUSED = 5  # RFC 1035, section 4.1.1


def resolver(ready: int, address: str, hosts: dict[str, str], udp: bool = True) -> None:
    """Answers questions of type A and AAAA, with a second to live (RFC 1035, section 4; over TCP RFC 7766)."""
    with listener(address, 53, udp=udp) as server:
        os.write(ready, b"ok")
        while True:
            if udp:
                question, peer = server.recvfrom(2048)
                server.sendto(answer(question, hosts), peer)
                continue
            connection, _ = server.accept()
            with connection, connection.makefile("rwb") as stream:
                told = answer(stream.read(int.from_bytes(stream.read(2), "big")), hosts)
                stream.write(len(told).to_bytes(2, "big") + told)


def answer(question: bytes, hosts: dict[str, str]) -> bytes:
    """The address of a known name, whatever its case; the question is echoed."""
    labels, rest = [], question[12:]
    while rest[0]:
        labels.append(rest[1 : rest[0] + 1].decode().lower())
        rest = rest[rest[0] + 1 :]
    known = hosts[".".join(labels)]
    data = socket.inet_pton(socket.AF_INET6 if ":" in known else socket.AF_INET, known)
    kind = AAAA if ":" in known else A
    record = b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1\0\0\0\1" + len(data).to_bytes(2, "big") + data
    return question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:] + record


def more_addresses(*addresses: str) -> None:
    with IPRoute() as ip:
        for address in addresses:
            ip.addr("add", index=ip.link_lookup(ifname="wire")[0], address=address, prefixlen=24)


def named(world: World, folder: Path) -> None:
    """The peer serves and resolves; one of its addresses is the host's resolver, another one lies."""
    world.run(more_addresses, OTHER, LIAR, peer=True)
    known = {"api.example.org": PEER4, "v6.example.org": PEER6, "other.example.org": OTHER}
    world.start_ready(resolver, PEER4, known, peer=True)
    world.start_ready(resolver, PEER4, known, False, peer=True)
    world.start_ready(resolver, LIAR, {"api.example.org": OTHER}, peer=True)
    for address in (PEER4, PEER6, OTHER):
        for port in (80, 443):
            world.serve(address, port, peer=True)
    world.serve(PEER4, 443, peer=True, udp=True)
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver {PEER4}\n")
    ns.bind(resolv_conf, Path("/etc/resolv.conf").resolve())


def reaches(world: World, address: str, port: int) -> bool:
    """Does a process of the unit reach it? What is refused is reset, and at once."""
    seen = world.run(ask, address, port, cgroup=SLICE)
    if isinstance(seen, dict):
        return True
    assert seen[0] == errno.ECONNRESET and seen[1] < 1, (address, port, seen)
    return False


def test_a_name_opens_the_address_that_the_unit_looked_up_and_nothing_else(tmp_path: Path) -> None:
    def test(world: World) -> None:
        named(world, tmp_path)
        rules = tuple(
            destination(Place("web.service.toml", 20), text) for text in ("API.example.org:443", "v6.example.org")
        )
        manager, _ = meshed(world, tmp_path, replace(policy(), outbound=rules))
        assert not reaches(world, PEER4, 443), "not looked up yet"
        for ask_by in (resolve, resolve_by_tcp):
            assert world.run(ask_by, LIAR, query("api.example.org"), cgroup=SLICE)[3] & 15 == REFUSED, "not the host's"
        assert world.run(resolve, PEER4, b"x" * 40, cgroup=SLICE)[3] & 15 == REFUSED, "no DNS message"
        assert world.run(resolve, PEER4, query("other.example.org"), cgroup=SLICE).endswith(socket.inet_aton(OTHER))
        assert not reaches(world, OTHER, 443), "another name"
        assert world.run(resolve, PEER4, query("api.EXAMPLE.org"), cgroup=SLICE).endswith(socket.inet_aton(PEER4))
        assert reaches(world, PEER4, 443)
        assert not reaches(world, PEER4, 80), "another port"
        assert not reaches(world, OTHER, 443), "another address"
        assert not reaches(world, PEER6, 443), "not looked up yet"
        question = query("v6.example.org")[:-4] + b"\0\x1c\0\1"
        assert world.run(resolve_by_tcp, PEER4, question, cgroup=SLICE).endswith(
            socket.inet_pton(socket.AF_INET6, PEER6)
        )
        assert reaches(world, PEER6, 443) and reaches(world, PEER6, 80), "any port, learned over TCP"
        denied = manager.agent(ProxyClient.stats).denied
        assert denied == {"web.service.toml:no-outbound": 5 + 3}
        assert not isinstance(world.run(ask_udp, PEER4, 443, cgroup=SLICE), dict), "names are for TCP"
        manager.kill()

    in_world(test)


def test_port_53_is_no_way_out_but_to_a_listed_network(tmp_path: Path) -> None:
    def test(world: World) -> None:
        named(world, tmp_path)
        rule = destination(Place("web.service.toml", 20), f"{LIAR}:53")
        manager, _ = meshed(world, tmp_path, replace(policy(), outbound=(rule,)))
        question = query("api.example.org")
        assert world.run(resolve, LIAR, question, cgroup=SLICE).endswith(socket.inet_aton(OTHER)), "listed"
        assert world.run(resolve, PEER4, question, cgroup=SLICE).endswith(socket.inet_aton(PEER4)), "the host's"
        for ask_by in (resolve, resolve_by_tcp):
            for address in (OTHER, PEER6):
                told = world.run(ask_by, address, question, cgroup=SLICE)
                assert (told[:2], told[3] & 15) == (question[:2], REFUSED), (ask_by, address, told)
        seen = manager.agent(ProxyClient.stats)
        assert seen.denied == {"web.service.toml:no-outbound": 4}
        assert (seen.gauges["dns_forwarded"], seen.gauges["dns_failed"]) == (2, 4)
        manager.kill()

    in_world(test)


def test_after_a_restart_of_the_proxy_the_unit_looks_up_again(tmp_path: Path) -> None:
    def test(world: World) -> None:
        named(world, tmp_path)
        rule = destination(Place("web.service.toml", 20), "api.example.org:443")
        manager, _ = meshed(world, tmp_path, replace(policy(), outbound=(rule,)))
        for _ in range(2):
            assert not reaches(world, PEER4, 443)
            world.run(resolve, PEER4, query("api.example.org"), cgroup=SLICE)
            assert reaches(world, PEER4, 443)
            manager.kill()
            manager.start()
        manager.kill()

    in_world(test)
