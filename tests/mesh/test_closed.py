"""Failing closed, on the hosts of the main job; repeated as often as is promised with ``--long``."""

from collections.abc import Callable

import pytest

from tests.mesh import attacks, closed, states
from tests.mesh.world import World

pytestmark = pytest.mark.lab


def test_foreign_flushes(mesh: World, rounds: Callable[[int, int], int]) -> None:
    print(closed.foreign_flushes(mesh, rounds(10, 100), within_ms=rounds(1000, 100)))  # CI's machine may be busy


def test_reboots(mesh: World, rounds: Callable[[int, int], int]) -> None:
    print(closed.reboots(mesh, rounds(2, 20)))


@pytest.mark.parametrize("state", states.STATES, ids=lambda state: state.__name__)
def test_shut(mesh: World, state: states.State) -> None:
    print(states.shut(mesh, state))


@pytest.mark.parametrize(
    "attack", [attacks.forged_sources, attacks.replayed, attacks.resets], ids=lambda attack: attack.__name__
)
def test_attack_on_the_link(mesh: World, attack: Callable[[World], str]) -> None:
    print(attack(mesh))
