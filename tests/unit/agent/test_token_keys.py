"""The keeper of token issuers' keys: the last good set stays in force, whatever becomes of its place."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hostmesh.agent import token_keys
from hostmesh.agent.reports import Reports
from hostmesh.agent.token_keys import TokenKeys
from hostmesh.apply.files import Files
from hostmesh.observe.journal import Journal
from hostmesh.policy.model import Policy
from hostmesh.policy.validate import load
from hostmesh.wire.proxy_control import Event, Events
from tests.lab.waiting import wait_until
from tests.mesh.issuer import Issuer, key_set

ISSUER = Issuer()
FILE = "inventory.service.toml"


def policies(place: Path) -> tuple[Policy, ...]:
    return load({FILE: f'[[inbound.jwt]]\nissuer = "i"\naudience = "a"\njwks = "{place}"\n'})


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    journal = Journal(str(tmp_path / "none"))
    yield Reports(journal)
    journal.close()


class World:
    """A keeper whose state and key set are files of this folder."""

    def __init__(self, folder: Path, reports: Reports) -> None:
        self.place, self.state, self.changes = folder / "keys.json", folder / "state", asyncio.Event()
        self.keeper = TokenKeys(self.state, Files(), reports, self.changes.set)
        self.keeper.want(policies(self.place))

    def kids(self) -> list[str]:
        return [key.kid for key in self.keeper.keys[str(self.place)]]

    async def changed(self) -> list[str]:
        await asyncio.wait_for(self.changes.wait(), 5)
        self.changes.clear()
        return self.kids()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.keeper.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def test_a_set_is_read_kept_and_read_again_when_it_is_written(tmp_path: Path, reports: Reports) -> None:
    async def steps() -> None:
        world = World(tmp_path, reports)
        world.place.write_text(key_set(ISSUER.keys))
        async with world.running():
            assert await world.changed() == ["rs", "ps", "es", "es384", "ed"]
            world.place.write_text(key_set([ISSUER.es]))
            assert await world.changed() == ["es"]
        assert World(tmp_path, reports).kids() == ["es"], "after a restart at once"

    asyncio.run(steps())


def test_what_is_gone_or_bad_takes_nothing_away(tmp_path: Path, reports: Reports) -> None:
    async def steps() -> None:
        world = World(tmp_path, reports)
        world.place.write_text(key_set([ISSUER.es]))
        async with world.running():
            await world.changed()
        assert not world.keeper.notes()
        for bad in ("", '{"keys": []}', None):
            world.place.unlink() if bad is None else world.place.write_text(bad)
            again = World(tmp_path, reports)
            async with again.running():
                await asyncio.to_thread(wait_until, again.keeper.notes, "it is told")
            assert again.kids() == ["es"]
            [note] = again.keeper.notes()
            assert note.endswith("ago stay in force"), note
            assert again.keeper.ages()[str(world.place)][1] == 1

    asyncio.run(steps())


def test_an_unknown_key_has_the_set_read_at_once_but_not_without_end(
    tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        world = World(tmp_path, reports)
        world.place.write_text(key_set([ISSUER.es]))
        reads: list[str] = []
        read = token_keys.key_sets.read

        def counted(place: str) -> object:
            reads.append(place)
            return read(place)

        monkeypatch.setattr(token_keys.key_sets, "read", counted)
        asks = Event(0, "token", "u", "inbound", "deny", f"{FILE}:1", "", "", 0, "http", "")
        async with world.running():
            await world.changed()
            now = asyncio.get_running_loop().time
            ends = now() + 5 * token_keys._SPACING_LEAST
            while now() < ends:
                world.keeper.events(Events([asks] * 50, 0))
                await asyncio.sleep(0.01)
        assert 3 <= len(reads) <= 5, "after half a second, again, one, two: less often each time"

    asyncio.run(steps())


def test_sets_that_no_policy_names_are_forgotten(tmp_path: Path, reports: Reports) -> None:
    world = World(tmp_path, reports)
    world.keeper.want(())
    assert not world.keeper.keys
