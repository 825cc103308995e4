"""The real data plane on a real kernel: names behind the real ruleset, identities that outlive kill -9."""

import base64
import os
import secrets
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.apply.proxy import ProxyClient, ProxyRefused
from hostmesh.identity.authority import Authority, Slot, SlotState, make_intermediate, make_root
from hostmesh.identity.svid import read_request
from hostmesh.names import SpiffeId, UnitName, dns_names_of
from hostmesh.plan.compile import Plan, compile_plan
from hostmesh.plan.facts import HostFacts
from hostmesh.policy.model import Policy
from hostmesh.wire.proxy_control import Status
from hostmesh.wire.snapshot import Service, Snapshot, Traffic
from tests.host.plans import SETTINGS, SLICE, UNIT, VIPS, Bench, policy
from tests.host.proxy_process import Manager
from tests.host.world import HERE4, HERE6, PEER4, PEER6, World, in_world, listener

pytestmark = pytest.mark.kernel
NAME = str(UNIT)
ELSEWHERE = b"\x00what the resolver says, and nobody parses\xff"
VIP = bytes([240, 240, 0, 5])
NOWHERE = "198.18.7.77"


def authority() -> Authority:
    """The controller's own CA code, with keys of the moment."""
    now, (root_key, key) = datetime.now(UTC), (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = make_root(SETTINGS.trust_domain, root_key, now=now, serial=1)
    intermediate = make_intermediate(root, root_key, key.public_key(), now=now, serial=2)
    return Authority(SETTINGS.trust_domain, (Slot(SlotState.ACTIVE, root, intermediate, key),))


def sign(ca: Authority, request: str, unit: UnitName = UNIT, host: str = "h1") -> list[str]:
    """The chain that the controller would give for a proxy's request."""
    key, who = read_request(base64.b64decode(request)), SpiffeId.of_unit(ca.trust_domain, unit)
    life, serial = timedelta(hours=1), secrets.randbits(100)
    chain = ca.sign(who, dns_names_of(host), key, now=datetime.now(UTC), life=life, serial=serial)
    return [base64.b64encode(each.public_bytes(Encoding.DER)).decode() for each in chain]


def made(ca: Authority, unit: Policy | None = None) -> tuple[Plan, Snapshot]:
    """The plan of a host with one unit, and a service ``inventory``: for the kernel, and for the proxy."""
    bundle = [base64.b64encode(root.public_bytes(Encoding.DER)).decode() for root in ca.trust_bundle]
    traffic = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="")
    service = Service(name="inventory", vips=["240.240.0.5", "fd00:240::5"], ports=[], traffic=traffic, endpoints=[])
    facts = HostFacts("h1", (HERE4, HERE6), {}, {UNIT: 7}, proxy_uid=0)
    plan = compile_plan(SETTINGS, [unit or policy()], facts, [service], bundle, VIPS)
    assert plan.snapshot is not None
    return replace(plan, slices=(), files={}, snapshot=None), plan.snapshot


def query(name: str) -> bytes:
    """A question of type A in class IN, with an id of its own (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return os.urandom(2) + b"\x01\x00\x00\x01" + bytes(6) + labels + b"\0\x00\x01\x00\x01"


def resolve(address: str, question: bytes) -> bytes:
    """The answer, by a connected socket, which takes none from elsewhere; or the error's text."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(8)
        try:
            client.connect((address, 53))
            client.send(question)
            return client.recv(2048)
        except OSError as error:
            return repr(error).encode()


def resolve_by_tcp(address: str, question: bytes) -> bytes:
    """The answer over TCP (RFC 7766); or the error's text."""
    try:
        with socket.create_connection((address, 53), timeout=8) as client, client.makefile("rb") as answers:
            client.sendall(len(question).to_bytes(2, "big") + question)
            return answers.read(int.from_bytes(answers.read(2), "big"))
    except OSError as error:
        return repr(error).encode()


def resolver(ready: int, address: str) -> None:
    """Answers any query with its id and something that is no DNS message."""
    with listener(address, 53, udp=True) as server:
        os.write(ready, b"ok")
        while True:
            question, peer = server.recvfrom(2048)
            server.sendto(expected(question), peer)


def expected(question: bytes) -> bytes:
    return question[:2] + ELSEWHERE + question[2:]


def meshed(world: World, folder: Path, unit: Policy | None = None) -> tuple[Manager, Snapshot]:
    """The ruleset is in force, the proxy runs with its snapshot, there is a unit and somebody else."""
    manager, (plan, snapshot) = Manager(folder), made(authority(), unit)
    world.cgroup(SLICE)
    world.cgroup("other")
    Bench(folder).apply(plan)
    manager.start()
    manager.agent(lambda agent: agent.set_snapshot(snapshot))
    manager.take_until_listening()
    return manager, snapshot


def test_names_are_for_meshed_units_only_and_other_queries_pass_unchanged(tmp_path: Path) -> None:
    def test(world: World) -> None:
        manager, _ = meshed(world, tmp_path)
        for address in (PEER4, PEER6):
            world.start_ready(resolver, address, peer=True)
        world.start_ready(resolver, "127.0.0.53")
        for address in (PEER4, PEER6, "127.0.0.53", NOWHERE):
            for name in ("inventory", "inventory.mesh"):
                question = query(name)
                answer = world.run(resolve, address, question, cgroup=SLICE)
                assert answer[:2] == question[:2] and answer.endswith(VIP), (address, name, answer)
        for address in (PEER4, PEER6, "127.0.0.53"):
            question = query("example.org")
            assert world.run(resolve, address, question, cgroup=SLICE) == expected(question), address
            question = query("inventory.mesh")
            assert world.run(resolve, address, question, cgroup="other") == expected(question), address
        gauges = manager.agent(ProxyClient.stats).gauges
        assert (gauges["dns_answered"], gauges["dns_forwarded"], gauges["dns_failed"]) == (8, 3, 0)
        manager.kill()

    in_world(test)


def test_names_are_answered_over_tcp_too(tmp_path: Path) -> None:
    def test(world: World) -> None:
        manager, _ = meshed(world, tmp_path)
        for address in (PEER4, PEER6, NOWHERE):
            answer = world.run(resolve_by_tcp, address, query("inventory"), cgroup=SLICE)
            assert answer.endswith(VIP), (address, answer)
        manager.kill()

    in_world(test)


def test_a_query_while_the_proxy_is_down_is_answered_when_it_is_back(tmp_path: Path) -> None:
    def test(world: World) -> None:
        manager, _ = meshed(world, tmp_path)
        manager.kill()
        waiting = world.start(resolve, NOWHERE, query("inventory.mesh"), cgroup=SLICE)
        manager.start()
        assert waiting().endswith(VIP)
        manager.kill()

    in_world(test)


def test_identities_outlive_kill_9_with_nobody_else_alive(tmp_path: Path) -> None:
    def test(_: World) -> None:
        ca, manager = authority(), Manager(tmp_path)
        _, snapshot = made(ca)

        async def enrol(agent: ProxyClient) -> Status:
            await agent.set_snapshot(snapshot)
            await agent.set_svid(NAME, sign(ca, await agent.csr(NAME)))
            return await agent.status()

        manager.start()
        before = manager.agent(enrol)
        assert [svid.unit for svid in before.svids] == [NAME]
        manager.take_until(lambda: len(manager.kept_as("svid-")) == 1)
        with pytest.raises(PermissionError):
            os.pwrite(manager.kept_as("svid-")[0], b"x", 0)
        for _ in range(3):
            manager.kill()
            assert manager.start() < 2
            after = manager.agent(ProxyClient.status)
            assert (after.svids, after.revision) == (before.svids, before.revision)
        manager.kill()

    in_world(test)


def test_a_chain_that_is_not_exactly_this_units_is_refused(tmp_path: Path) -> None:
    def test(_: World) -> None:
        ca, manager = authority(), Manager(tmp_path)
        _, snapshot = made(ca)

        async def try_all(agent: ProxyClient) -> Status:
            await agent.set_snapshot(snapshot)
            request = await agent.csr(NAME)
            for chain, reason in (
                (sign(authority(), request), "invalid peer certificate"),
                (sign(ca, request, unit=UnitName("orders.service")), "expected spiffe://.*/unit/web"),
                (sign(ca, request, host="h2"), "is for host h2"),
                (sign(ca, request)[:1], "invalid peer certificate"),
                ([], "empty"),
            ):
                with pytest.raises(ProxyRefused, match=reason):
                    await agent.set_svid(NAME, chain)
            return await agent.status()

        manager.start()
        assert manager.agent(try_all).svids == []
        manager.kill()

    in_world(test)
