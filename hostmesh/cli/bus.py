"""Turns what verbs ask of systemd into calls on the system bus, for the length of a verb."""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from hostmesh.apply import bus
from hostmesh.apply.bus import MANAGER, PATH, PROPERTIES

T = TypeVar("T")


class Bus(bus.Bus):
    """A connection to the system bus, for the length of an ``async with``."""

    _gone: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gone is not None:
            self._gone.cancel()
        self.close()

    async def enable(self, *units: str) -> None:
        """Start with the machine from now on, as ``systemctl enable`` does."""
        await self.call("EnableUnitFiles", "asbb", list(units), False, True)

    async def disable(self, *units: str) -> None:
        """Not with the machine any more, as ``systemctl disable`` does."""
        await self.call("DisableUnitFiles", "asb", list(units), False)

    async def watch(self, path: str, heard: Callable[[], None]) -> None:
        """Have ``heard`` called when an object says that a property changed, when one is gone, and when the bus is."""
        changed = f"path='{path}',interface='{PROPERTIES}'"
        removed = f"path='{PATH}',interface='{MANAGER}',member='UnitRemoved'"
        await self.follow(lambda _: heard(), changed, removed)
        self._gone = asyncio.ensure_future(self.gone())
        self._gone.add_done_callback(lambda _: heard())


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's asynchronous part to its end."""
    return asyncio.run(work)
