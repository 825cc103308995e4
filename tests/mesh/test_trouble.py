"""Disks that take no writes, processes short of descriptors: told with the remedy, traffic goes on, all heals."""

from collections.abc import Iterator

import pytest

from tests.mesh import disks, scarcity
from tests.mesh.disks import Trouble
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def small_disks(mesh: World) -> Iterator[World]:
    """The world, with every folder of h2 that hostmesh writes to on a small disk of its own."""
    with disks.small_disks(mesh):
        yield mesh


@pytest.mark.parametrize("trouble", disks.TROUBLES, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("show", disks.SHOWS, ids=lambda show: show.__name__)
def test_a_disk_that_takes_no_writes(small_disks: World, show: object, trouble: Trouble) -> None:
    assert callable(show)
    print(show(small_disks, trouble))


@pytest.mark.parametrize("show", [scarcity.proxy_without_descriptors], ids=lambda show: show.__name__)
def test_scarcity(mesh: World, show: object) -> None:
    assert callable(show)
    print(show(mesh))
