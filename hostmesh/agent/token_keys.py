"""Keeps the keys of token issuers: reads each set when it is due, and at once when a token names a key that it lacks.

Law: a set that cannot be had, or has nothing of use, takes nothing away. The last good one stays in force, over
restarts too (on disk), and its age is told.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hostmesh.agent.reports import Reports
from hostmesh.apply.clock import boottime, wall
from hostmesh.apply.files import Files
from hostmesh.errors import HostmeshError
from hostmesh.identity import jwks
from hostmesh.identity.jwks import PublicKey
from hostmesh.observe import key_sets
from hostmesh.observe.folder import FolderWatch
from hostmesh.policy.model import Policy
from hostmesh.wire.codec import decode
from hostmesh.wire.proxy_control import Events
from hostmesh.wire.snapshot import Struct

_FRESH, _FRESH_LEAST, _FRESH_MOST = 300.0, 60.0, 3600.0
_RETRY_FIRST, _RETRY_MOST = 0.5, 60.0
_DOUBLINGS = 10
_SPACING_LEAST, _SPACING_MOST = 0.5, 4.0
"""Tokens have a set read again so often at most: less often each time that it brings nothing new."""


class _Kept(Struct):
    """A set on disk. read: seconds since the epoch."""

    place: str
    read: float
    text: str


@dataclass(slots=True)
class _Set:
    """One set. read: when it was had, seconds since the epoch; 0: never. fruitless: reads in a row without news."""

    place: str
    text: str = ""
    keys: tuple[PublicKey, ...] = ()
    read: float = 0.0
    trouble: str = ""
    failures: int = 0
    fruitless: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)


class TokenKeys:
    """``changed`` is called when there are other keys."""

    def __init__(self, folder: Path, files: Files, reports: Reports, changed: Callable[[], None]) -> None:
        self._folder, self._files, self._reports, self._changed = folder, files, reports, changed
        self._random = random.SystemRandom()
        self._sets: dict[str, _Set] = {}
        self._places: dict[str, str] = {}
        self._wanted = asyncio.Event()

    @property
    def keys(self) -> Mapping[str, Sequence[PublicKey]]:
        """All that are known, by where they are had from."""
        return {place: one.keys for place, one in self._sets.items()}

    def want(self, policies: Sequence[Policy]) -> None:
        """The sets that these policies name. What was known of a new one before a restart is known at once."""
        self._places = {issuer.place.rule: issuer.jwks for policy in policies for issuer in policy.jwt}
        wanted = set(self._places.values())
        if wanted == self._sets.keys():
            return
        self._sets = {place: self._sets.get(place) or self._kept(place) for place in sorted(wanted)}
        self._wanted.set()

    def events(self, batch: Events) -> None:
        """What the proxy tells: tokens by unknown keys have a set read again."""
        for event in batch.events:
            one = self._sets.get(self._places.get(event.rule, "")) if event.kind == "token" else None
            if one is not None:
                one.asked.set()

    def ages(self) -> dict[str, tuple[float, int]]:
        """Seconds since each set was read, and how many keys it has; those never read are left out."""
        return {place: (max(wall() - one.read, 0.0), len(one.keys)) for place, one in self._sets.items() if one.read}

    def notes(self) -> list[str]:
        """What a person should know."""
        troubled = [one for one in self._sets.values() if one.trouble]
        return [f"token keys of {one.place}: {one.trouble}{_meanwhile(one)}" for one in troubled]

    async def run(self) -> None:
        """Follow the sets that are wanted, each by itself, until cancelled."""
        following: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._wanted.clear()
                for place in following.keys() - self._sets.keys():
                    following.pop(place).cancel()
                for place in self._sets.keys() - following.keys():
                    following[place] = group.create_task(self._follow(self._sets[place]))
                await self._wanted.wait()

    async def _follow(self, one: _Set) -> None:
        with _watched(one) as attach:
            while True:
                attach()
                one.asked.clear()
                began, before = boottime(), one.keys
                pause = await self._read(one)
                one.fruitless = one.fruitless + 1 if one.keys == before else 0
                try:
                    await asyncio.wait_for(one.asked.wait(), pause)
                except TimeoutError:
                    one.fruitless = 0
                    continue
                spacing = min(_SPACING_LEAST * 2.0 ** min(max(one.fruitless - 1, 0), _DOUBLINGS), _SPACING_MOST)
                await asyncio.sleep(max(began + spacing - boottime(), 0.0))

    async def _read(self, one: _Set) -> float:
        """Read it once; seconds until it is due again."""
        try:
            found = await asyncio.to_thread(key_sets.read, one.place)
            keys, troubles = jwks.read(found.text)
        except HostmeshError as error:
            one.failures += 1
            self._tell(one, str(error))
            pause = min(_RETRY_FIRST * 2.0 ** min(one.failures, _DOUBLINGS), _RETRY_MOST)
            return pause * self._random.uniform(0.5, 1.0)
        one.failures, one.read = 0, wall()
        if found.text != one.text:
            others, one.text, one.keys = keys != one.keys, found.text, keys
            if others:
                self._reports.info(f"token keys of {one.place}: {len(keys)}, read anew")
                self._changed()
        self._keep(one)
        self._tell(one, "; ".join(troubles))
        fresh = _FRESH if found.max_age is None else min(max(found.max_age, _FRESH_LEAST), _FRESH_MOST)
        return fresh * self._random.uniform(0.9, 1.0)

    def _tell(self, one: _Set, trouble: str) -> None:
        """The line of the journal names the trouble, not its age: that would be another line each time."""
        one.trouble = trouble
        still = "; the last good ones stay in force" if trouble and one.failures and one.keys else ""
        self._reports.state(f"token keys of {one.place}", trouble + still)

    def _file(self, place: str) -> str:
        return str(self._folder / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json")

    def _kept(self, place: str) -> _Set:
        one = _Set(place)
        text = self._files.read(self._file(place))
        if text is None:
            return one
        try:
            kept = decode(text, _Kept)
            keys, _ = jwks.read(kept.text)
        except (msgspec.DecodeError, HostmeshError) as error:
            self._reports.warning(f"token keys of {place} that were kept on disk are lost: {error}")
            return one
        if kept.place == place:
            one.text, one.keys, one.read = kept.text, keys, kept.read
        return one

    def _keep(self, one: _Set) -> None:
        about = f"token keys of {one.place} are not kept on disk"
        try:
            self._files.write(self._file(one.place), msgspec.json.encode(_Kept(one.place, one.read, one.text)).decode())
        except HostmeshError as error:
            self._reports.state(about, str(error))
        else:
            self._reports.state(about, "")


@contextmanager
def _watched(one: _Set) -> Iterator[Callable[[], object]]:
    """A file that is written is read at once. Gives what begins the watch, and begins it again."""
    if not one.place.startswith("/"):
        yield lambda: None
        return
    loop, path = asyncio.get_running_loop(), Path(one.place)
    watch = FolderWatch(path.parent, path.name)
    loop.add_reader(watch.fileno(), lambda: one.asked.set() if watch.read() else None)
    try:
        yield watch.attach
    finally:
        loop.remove_reader(watch.fileno())
        watch.close()


def _meanwhile(one: _Set) -> str:
    if not one.failures:
        return ""
    if not one.keys:
        return "; no token of theirs is believed until they are there"
    return f"; those of {_span(wall() - one.read)} ago stay in force"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
