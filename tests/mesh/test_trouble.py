"""Disks that take no writes, processes that are short of something or frozen, a host that vanishes: told, all heals."""

from collections.abc import Callable, Iterator

import pytest

from tests.mesh import disks, frozen, scarcity, vanished
from tests.mesh.disks import Trouble
from tests.mesh.world import World

pytestmark = pytest.mark.lab


SCARCE = (scarcity.proxy_without_descriptors, scarcity.proxy_without_memory, scarcity.agent_with_too_little)


@pytest.mark.parametrize("show", SCARCE, ids=lambda show: show.__name__)
def test_scarcity(mesh: World, show: Callable[[World], str]) -> None:
    print(show(mesh))


@pytest.mark.parametrize("show", [frozen.proxy, frozen.journald], ids=lambda show: show.__name__)
def test_frozen(mesh: World, show: Callable[[World], str]) -> None:
    print(show(mesh))


def test_frozen_control(mesh: World, rounds: Callable[[int, int], int]) -> None:
    print(frozen.control(mesh, to_the_end=rounds(0, 1) == 1))


def test_a_host_that_vanishes(mesh: World) -> None:
    print(vanished.peer(mesh))


@pytest.fixture(scope="module")
def small_disks(mesh: World) -> Iterator[World]:
    """The world, with every folder of h2 that hostmesh writes to on a small disk of its own, from here to the end."""
    with disks.small_disks(mesh):
        yield mesh


@pytest.mark.parametrize("trouble", disks.TROUBLES, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("show", disks.SHOWS, ids=lambda show: show.__name__)
def test_a_disk_that_takes_no_writes(
    small_disks: World, show: Callable[[World, Trouble], str], trouble: Trouble
) -> None:
    print(show(small_disks, trouble))
