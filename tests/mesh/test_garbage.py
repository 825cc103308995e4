"""Garbage at every listener and socket, in every file: nothing falls over, each is told."""

import pytest

from tests.mesh import garbage
from tests.mesh.world import World

pytestmark = pytest.mark.lab


def test_no_listener_falls_over(mesh: World) -> None:
    strange = []
    with garbage.nothing_falls_over(mesh):
        for door in garbage.DOORS:
            said, odd = garbage.thrown_at(mesh, door)
            print(said)
            strange += odd
    assert not strange, "\n".join(strange)


@pytest.mark.parametrize("full", garbage.FILES, ids=lambda full: full.files[0])
def test_a_file_of_noise_is_told(mesh: World, full: garbage.Full) -> None:
    print(garbage.file_of_noise(mesh, full))


@pytest.mark.parametrize("show", [garbage.policy_of_noise, garbage.snapshot_of_noise], ids=lambda show: show.__name__)
def test_what_is_in_force_stays(mesh: World, show: object) -> None:
    assert callable(show)
    print(show(mesh))
