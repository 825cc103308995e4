"""What goes wrong for long ends no task of the agent: a controller that is away for days, a disk that is full."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hostmesh.agent import identities, mesh
from hostmesh.agent.controller_client import ControllerAway
from hostmesh.agent.identities import Identities
from hostmesh.agent.mesh import Mesh
from hostmesh.agent.reports import Reports
from hostmesh.agent.services import NOTHING
from hostmesh.apply.files import Files, NotWritten
from hostmesh.observe.journal import Journal
from hostmesh.policy.settings import Paths, Settings
from hostmesh.wire.controller import PublishReply, PublishRequest, WatchEvent
from tests.lab.waiting import wait_until


class Proxy:
    """A proxy that makes a request for every unit."""

    async def csr(self, unit: str) -> str:
        return "ZGVy"


class Away:
    """A mesh whose controller is away."""

    async def sign(self, unit: str, csr: str) -> list[str]:
        raise ControllerAway("no controller can be reached")


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    journal = Journal(str(tmp_path / "none"))
    yield Reports(journal)
    journal.close()


@pytest.fixture
def found(tmp_path: Path, reports: Reports) -> Mesh:
    return Mesh(Settings(paths=Paths(state=str(tmp_path))), reports, lambda _: None)


def test_an_identity_is_tried_for_ever_and_never_less_often_than_every_half_minute(reports: Reports) -> None:
    async def go() -> None:
        kept = Identities(Proxy(), Away(), reports, lambda: None)  # type: ignore[arg-type]
        limit = asyncio.Semaphore(1)
        for _ in range(1100):  # twice as many as a float has doublings
            assert not await kept._renew("web.service", limit)
        trouble = kept._trouble["web.service"]
        assert trouble.failures == 1100
        assert 0 < trouble.not_before - identities.boottime() <= 30

    asyncio.run(go())


class Client:
    """A controller's client: says ``events``, then nothing; takes a word when it is ``there``."""

    def __init__(self, *events: WatchEvent) -> None:
        self.events, self.there, self.tried = events, False, asyncio.Event()

    async def watch(self, revision: int) -> AsyncIterator[WatchEvent]:
        for event in self.events:
            yield event

    async def publish(self, word: PublishRequest) -> PublishReply:
        self.tried.set()
        if not self.there:
            raise ControllerAway("no controller can be reached")
        return PublishReply(refused={})


EVENT = WatchEvent(revision=7, full=True, services=[], removed=[], trust_bundle=["root"], vip_ranges=[])


async def _listen_and_keep(found: Mesh, until: Callable[[], bool]) -> None:
    keeping = asyncio.ensure_future(found._keep())
    await found._listen(Client(EVENT))  # type: ignore[arg-type]
    await asyncio.to_thread(wait_until, until, "it is on disk")
    keeping.cancel()


def test_a_full_disk_keeps_no_word_from_being_in_force_and_takes_it_when_there_is_room(
    found: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reports: Reports
) -> None:
    tried: list[str] = []
    write = Files.write

    def full(self: Files, path: str, text: str) -> None:
        tried.append(path)
        if len(tried) < 3:
            raise NotWritten(Path(path), OSError(28, "No space left on device"))
        assert found.catalog.revision == 7, "in force all the while"
        write(self, path, text)

    monkeypatch.setattr(mesh.Files, "write", full)
    monkeypatch.setattr(mesh, "_KEEP_AGAIN", 0.0)
    asyncio.run(asyncio.wait_for(_listen_and_keep(found, (tmp_path / "catalog.json").exists), 10))
    following = Mesh(Settings(paths=Paths(state=str(tmp_path))), reports, lambda _: None)
    following.load()
    assert following.catalog == found.catalog != NOTHING


def test_a_controller_that_is_back_is_told_at_once(found: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "_RETRY_FIRST", 60.0)

    async def go() -> None:
        client = Client(EVENT)
        found.say(("198.18.0.1",), [])
        speaking = asyncio.ensure_future(found._speak(client))  # type: ignore[arg-type]
        await client.tried.wait()
        client.tried.clear()
        await asyncio.sleep(0)  # _speak takes the refusal, and waits
        assert found.error == "no controller can be reached"
        client.there = True
        await found._listen(client)  # type: ignore[arg-type]
        await client.tried.wait()
        await asyncio.sleep(0)
        assert found.error == ""
        speaking.cancel()

    asyncio.run(asyncio.wait_for(go(), 10))
