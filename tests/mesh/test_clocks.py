"""Clocks that jump by a day each way, and a host that slept, on real hosts."""

from collections.abc import Callable

import pytest

from tests.mesh import clocks
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.mark.timeout(900)  # what is waited for on a slow machine adds up
def test_clocks(mesh: World, rounds: Callable[[int, int], int]) -> None:
    with clocks.own_clocks(mesh) as w:
        for show in clocks.SHOWS[: rounds(2, len(clocks.SHOWS))]:
            print(f"{show.__name__}: {show(w)}", flush=True)
