"""The agent's side of gRPC against gRPC's own server over TLS: answers, streams, refusals, and every way it can end."""

import asyncio
import datetime
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hostmesh.agent import grpc_link
from hostmesh.agent.grpc_link import CallFailed, GrpcLink, Status, client_context
from tests.lab.waiting import until

Serving = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

NAME = "server.test"
WITHIN = 10.0
SERVER = Path(__file__).with_name("grpc_server.py")


@dataclass(frozen=True)
class Server:
    """A server process; ``where`` it listens, ``pair``: key and certificate (PEM)."""

    process: "subprocess.Popen[str]"
    where: str
    pair: tuple[bytes, bytes]

    @property
    def context(self) -> ssl.SSLContext:
        key, certificate = self.pair
        return client_context(certificate, key, certificate)

    def heard(self) -> str:
        """The next line that it prints: what came of calls that nobody waits for any more."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()


def certificate() -> tuple[bytes, bytes]:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return pem, made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    key, made = certificate()
    (tmp_path / "pair.pem").write_bytes(key + made)
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, str(SERVER), str(tmp_path / "pair.pem")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    yield Server(process, f"127.0.0.1:{process.stdout.readline().strip()}", (key, made))
    process.kill()
    process.communicate(timeout=10)


@asynccontextmanager
async def linked(server: Server) -> AsyncIterator[GrpcLink]:
    link = await GrpcLink.dial(server.where, server.context, NAME, WITHIN)
    try:
        yield link
    finally:
        await link.close()


def during(server: Server, scenario: Callable[[GrpcLink], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), linked(server) as link:
            await scenario(link)

    asyncio.run(run())


async def held(link: GrpcLink, name: bytes, within: float = WITHIN) -> "asyncio.Task[bytes]":
    """A call that the server has begun, and answers when it is released."""
    call = asyncio.create_task(link.unary("/test/Wait", name, within))
    assert await link.unary("/test/Waiting", name, WITHIN) == name
    return call


async def failure(call: Awaitable[object]) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call
    return failed.value


def test_what_was_sent_comes_back(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        for body in (b"", b"a", os.urandom(100_000), os.urandom(20_000_000)):  # more than every window at once
            assert await link.unary("/test/Echo", body, WITHIN) == body
        many = [os.urandom(300_000) for _ in range(20)]
        assert await asyncio.gather(*(link.unary("/test/Echo", body, WITHIN) for body in many)) == many

    during(server, scenario)


def test_a_stream_brings_all_its_answers_and_ends(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        found = [body async for body in link.stream("/test/Count", b"2000")]
        assert found == [str(number).encode() for number in range(2000)]
        assert [body async for body in link.stream("/test/Count", b"0")] == []

    during(server, scenario)


def test_refusals_are_told_in_the_servers_words(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        refused = await failure(link.unary("/test/Refuse", "not für 100 %\nof you".encode(), WITHIN))
        assert (refused.status, refused.details) == (Status.PERMISSION_DENIED, "not für 100 %\nof you")
        assert (await failure(link.unary("/test/Nothing", b"", WITHIN))).status is Status.UNIMPLEMENTED
        breaking = link.stream("/test/Break", b"3")
        assert [await anext(breaking) for _ in range(3)] == [b"0", b"1", b"2"]
        assert str(await failure(anext(breaking))) == "PERMISSION_DENIED: after 3"
        none = await failure(link.unary("/test/Count", b"0", WITHIN))
        assert none.status is Status.INTERNAL
        assert await link.unary("/test/Echo", b"goes on", WITHIN) == b"goes on"

    during(server, scenario)


def test_who_stops_waiting_tells_the_server(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        late = await held(link, b"late", 1.5)
        assert (await failure(late)).status is Status.DEADLINE_EXCEEDED
        assert await asyncio.to_thread(server.heard) == "late cancelled"
        task = await held(link, b"unary")
        task.cancel()
        assert await asyncio.to_thread(server.heard) == "unary cancelled"
        async with aclosing(link.stream("/test/Tick", b"stream")) as ticks:
            assert await anext(ticks) == b"stream"
        assert await asyncio.to_thread(server.heard) == "stream cancelled"
        assert await link.unary("/test/Echo", b"goes on", WITHIN) == b"goes on"

    during(server, scenario)


def test_a_retired_link_ends_its_streams_and_waits_for_its_calls(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        ticks = link.stream("/test/Tick", b"stream")
        await anext(ticks)
        call = await held(link, b"1")
        retired = asyncio.create_task(link.retire(WITHIN))
        assert (await failure(anext(ticks))).status is Status.CANCELLED
        assert await asyncio.to_thread(server.heard) == "stream cancelled"  # at once: it has no end of its own
        assert not retired.done()
        async with linked(server) as other:
            await other.unary("/test/Release", b"1", WITHIN)
        assert await call == b"1"
        await retired
        assert "closed here" in link.ended
        assert (await failure(link.unary("/test/Echo", b"", WITHIN))).status is Status.UNAVAILABLE

    during(server, scenario)


def test_who_does_not_end_in_time_is_cut_off(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        call = await held(link, b"1")
        await link.retire(0.1)
        assert (await failure(call)).status is Status.CANCELLED

    during(server, scenario)


def test_a_server_that_dies_ends_every_call(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        ticks = link.stream("/test/Tick", b"stream")
        await anext(ticks)
        waiting = await held(link, b"x")
        server.process.kill()
        for call in (waiting, anext(ticks)):
            gone = await failure(call)
            assert gone.status is Status.UNAVAILABLE
            assert gone.details.startswith(f"{server.where}: the connection ended")
        assert link.ended

    during(server, scenario)


def test_a_server_that_says_goodbye_ends_what_it_has_begun(server: Server) -> None:
    async def scenario(link: GrpcLink) -> None:
        waiting = await held(link, b"x")
        server.process.terminate()
        assert await asyncio.to_thread(server.heard) == "stopping"
        await until(lambda: bool(link.ended), "the goodbye is there", WITHIN)
        assert "the server closes the connection" in (await failure(link.unary("/test/Echo", b"", WITHIN))).details
        server.process.send_signal(signal.SIGUSR1)
        assert await waiting == b"x"

    during(server, scenario)


def test_a_frozen_server_is_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_link, "PING_EVERY", 0.2)
    monkeypatch.setattr(grpc_link, "PING_ANSWER", 0.5)

    async def scenario(link: GrpcLink) -> None:
        call = await held(link, b"x", 30.0)
        done, _ = await asyncio.wait({call}, timeout=2.0)  # ten pings that are answered
        assert not done
        server.process.send_signal(signal.SIGSTOP)
        assert "did not answer a ping within 0.5 s" in (await failure(asyncio.wait_for(call, WITHIN))).details

    during(server, scenario)


def test_only_the_server_that_was_meant_is_talked_to(server: Server) -> None:
    async def scenario() -> None:
        for context, name, said in (
            (client_context(certificate()[1]), NAME, "certificate verify failed"),
            (server.context, "other.test", "Hostname mismatch"),
        ):
            refused = await failure(GrpcLink.dial(server.where, context, name, WITHIN))
            assert refused.status is Status.UNAVAILABLE
            assert said in refused.details
        nobody = await GrpcLink.dial(server.where, client_context(server.pair[1]), NAME, WITHIN)
        refused = await failure(nobody.unary("/test/Echo", b"", WITHIN))  # in TLS 1.3 the refusal comes after
        assert refused.status is Status.UNAVAILABLE
        await nobody.close()

    asyncio.run(scenario())


def test_what_tls_cannot_be_made_of() -> None:
    key, made = certificate()
    for parts in ((b"",), (b"nonsense",), (made, b"nonsense", made), (made, key, certificate()[1])):
        with pytest.raises(CallFailed, match="TLS cannot be set up"):
            client_context(*parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(CallFailed, match="Too many open files"):
            client_context(made, key, made)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("127.0.0.1:1", "Connect call failed"),
        ("nonsense", "is no ADDRESS:PORT"),
        ("127.0.0.1:99999", "is no ADDRESS:PORT"),
        ("[::1]:x", "is no ADDRESS:PORT"),
        (f"{'a' * 64}.test:80", "is no ADDRESS:PORT"),
    ],
)
def test_where_nobody_is(where: str, said: str) -> None:
    async def scenario() -> None:
        refused = await failure(GrpcLink.dial(where, client_context(certificate()[1]), NAME, WITHIN))
        assert refused.status is Status.UNAVAILABLE
        assert said in refused.details
        assert where in refused.details

    asyncio.run(scenario())


def test_who_takes_the_connection_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        refused = asyncio.run(failure(GrpcLink.dial(where, client_context(certificate()[1]), NAME, 0.3)))
    assert "no connection within 0.3 s" in refused.details


def acting_server(folder: Path, protocols: list[str]) -> tuple[ssl.SSLContext, bytes]:
    """TLS for a server that a test plays itself, and the certificate (PEM) that vouches for it."""
    key, made = certificate()
    (folder / "pair.pem").write_bytes(key + made)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pair.pem")
    if protocols:
        context.set_alpn_protocols(protocols)
    return context, made


@asynccontextmanager
async def acted(serve: Serving, context: ssl.SSLContext) -> AsyncIterator[str]:
    """Where the test's own server listens."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    ("answer", "protocols", "said"),
    [
        (b"", [], "does not speak HTTP/2"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ["h2"], "HTTP/2 is broken"),
        (b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\x01\0\0\0\0\x01", ["h2"], "HTTP/2 is broken"),
        (b"\0\0\0\x04\0\0\0\0\0", ["h2"], "connection ended"),
    ],
)
def test_what_is_no_grpc(answer: bytes, protocols: list[str], said: str, tmp_path: Path) -> None:
    context, made = acting_server(tmp_path, protocols)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        if not said.startswith("connection ended"):
            await reader.read()  # who closes with bytes unread resets, and what it said may be lost
        writer.close()

    async def scenario() -> None:
        async with acted(serve, context) as where:
            try:
                link = await GrpcLink.dial(where, client_context(made), NAME, WITHIN)
                refused = await failure(link.unary("/test/Echo", b"", WITHIN))
                await link.close()
            except CallFailed as error:
                refused = error
        assert refused.status is Status.UNAVAILABLE
        assert said in refused.details

    asyncio.run(scenario())


def test_a_slow_line_is_no_dead_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a ping is behind the answer to a call, and that takes longer than a ping may."""
    monkeypatch.setattr(grpc_link, "PING_EVERY", 0.2)
    monkeypatch.setattr(grpc_link, "PING_ANSWER", 0.5)
    context, made = acting_server(tmp_path, ["h2"])
    body = os.urandom(20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(4, 0, 0))
        await reader.read(1)
        writer.write(frame(1, 4, 1, b"\x88"))  # :status 200
        for byte in b"\0" + len(body).to_bytes(4, "big") + body:
            writer.write(frame(0, 0, 1, bytes((byte,))))
            await asyncio.sleep(0.1)  # what the line takes
        await reader.read()
        writer.close()

    async def scenario() -> None:
        async with asyncio.timeout(60), acted(serve, context) as where:
            link = await GrpcLink.dial(where, client_context(made), NAME, WITHIN)
            async with aclosing(link.stream("/test/Slow", b"")) as answers:
                assert await anext(answers) == body
            await link.close()

    asyncio.run(scenario())


def test_close_does_not_wait_for_who_ended_its_side_and_reads_nothing(tmp_path: Path) -> None:
    context, made = acting_server(tmp_path, ["h2"])
    most = 2**31 - 1
    room = frame(4, 0, 0, b"\0\x04" + most.to_bytes(4, "big")) + frame(8, 0, 0, (most - 65535).to_bytes(4, "big"))
    call_begins = threading.Event()

    def serve(listening: socket.socket) -> socket.socket:
        """Give every room, read the first bytes of the call, end this side. The socket is for the test to close."""
        with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
            connection.sendall(room)
            assert call_begins.wait(WITHIN)
            silent = socket.socket(fileno=os.dup(connection.fileno()))
            silent.shutdown(socket.SHUT_WR)
            return silent

    async def scenario(listening: socket.socket) -> None:
        serving = asyncio.create_task(asyncio.to_thread(serve, listening))
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        link = await GrpcLink.dial(where, client_context(made), NAME, WITHIN)
        await until(lambda: link._h2.outbound_flow_control_window > 2**30, "the room is there", WITHIN)
        call = asyncio.create_task(link.unary("/test/Echo", os.urandom(30_000_000), WITHIN))
        await until(lambda: bool(link._calls), "the call has begun", WITHIN)
        call_begins.set()
        with await serving:
            async with asyncio.timeout(WITHIN):
                await link.close()
        assert (await failure(call)).status in (Status.CANCELLED, Status.UNAVAILABLE)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(scenario(listening))
