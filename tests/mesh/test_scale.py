"""Many of a thing at once, on real hosts: what a host with a thousand units asks for in one go."""

import asyncio

import pytest

from hostmesh.apply.bus import MANAGER, PATH, Bus
from tests.mesh.world import World

pytestmark = pytest.mark.lab
CALLS = 5000


def test_thousands_of_calls_at_once_are_all_answered_by_the_bus(mesh: World) -> None:
    """So many that the socket's buffer is full long before systemd has read the first of them."""

    async def ask() -> set[str]:
        bus = Bus(mesh.h1.dbus_address)
        await bus.connect()
        try:
            return set(await asyncio.gather(*(bus.get(PATH, MANAGER, "Version") for _ in range(CALLS))))
        finally:
            bus.close()

    [version] = asyncio.run(ask())
    assert version.startswith("252")
