"""The client of the proxy's control socket, against a real Unix socket that speaks the frames."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hostmesh.apply.proxy import ProxyClient, ProxyGone, ProxyRefused
from hostmesh.wire.codec import FrameReader, encode
from hostmesh.wire.proxy_control import Ack, Csr, Events, GetCsr, GetStatus, Nack, Request, SetSvid, Status

STATUS = Status(0, "0.1.0", "abc", 1, 2, 3, [])
Answers = Callable[[Request], list[object]]


def talk(tmp_path: Path, answers: Answers, ask: Callable[[ProxyClient], object]) -> tuple[object, list[Events]]:
    """Run ``ask`` with a client whose peer sends ``answers`` to each request; nothing to send: it hangs up."""
    seen: list[Events] = []

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames: FrameReader[Request] = FrameReader(Request)
        sent: list[object] = [None]
        while sent and (data := await reader.read(65536)):
            for request in frames.feed(data):
                sent = answers(request)
                writer.writelines(encode(message) for message in sent)  # type: ignore[arg-type]
        writer.close()
        await writer.wait_closed()
        ended.set()

    async def go() -> object:
        async with await asyncio.start_unix_server(serve, tmp_path / "s"):
            client = ProxyClient(str(tmp_path / "s"), seen.append)
            await client.connect()
            try:
                return await asyncio.wait_for(ask(client), 5)  # type: ignore[arg-type]
            finally:
                await client.close()
                assert client.gone.is_set()
                await asyncio.wait_for(ended.wait(), 5)

    return asyncio.run(go()), seen


def test_answers_find_who_asked_and_events_pass_by(tmp_path: Path) -> None:
    def answers(request: Request) -> list[object]:
        match request:
            case GetCsr(id, unit):
                return [Events([], 4), Csr(id, unit, "ZGVy")]
            case GetStatus(id):
                return [Status(id, "0.1.0", "abc", 1, 2, 3, [])]
            case _:
                return [Ack(request.id)]

    async def ask(client: ProxyClient) -> list[object]:
        return list(await asyncio.gather(client.csr("web.service"), client.status(), client.set_svid("w", ["YQ=="])))

    (csr, status, none), events = talk(tmp_path, answers, ask)  # type: ignore[misc]
    assert (csr, status.revision, none) == ("ZGVy", "abc", None)
    assert [batch.dropped for batch in events] == [4]


def test_a_refusal_gives_the_reason(tmp_path: Path) -> None:
    def answers(request: Request) -> list[object]:
        assert isinstance(request, SetSvid)
        return [Nack(request.id, "the chain is for another key")]

    with pytest.raises(ProxyRefused, match="the chain is for another key"):
        talk(tmp_path, answers, lambda client: client.set_svid("web.service", ["YQ=="]))


def test_a_proxy_that_goes_away_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ProxyGone, match="went away before it answered"):
        talk(tmp_path, lambda _: [], lambda client: client.status())


def test_an_answer_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(ProxyGone, match="answered with Ack, not Status"):
        talk(tmp_path, lambda request: [Ack(request.id)], lambda client: client.status())


def test_no_socket_no_proxy(tmp_path: Path) -> None:
    client = ProxyClient(str(tmp_path / "none"), lambda _: None)
    with pytest.raises(ProxyGone, match="No such file"):
        asyncio.run(client.connect())
    with pytest.raises(ProxyGone, match="no connection"):
        asyncio.run(client.status())
