"""The world of the demo, once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.mesh.twins import Twins, twins
from tests.mesh.world import World, world


@pytest.fixture(scope="session")
def mesh() -> Iterator[World]:
    """Two hosts with hostmesh and stock services, and an outsider."""
    with world() as built:
        yield built


@pytest.fixture(scope="module")
def pair(mesh: World) -> Iterator[Twins]:
    """Two endpoints of one service, one on each host, for the tests of a file."""
    with twins(mesh) as built:
        yield built
