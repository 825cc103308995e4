"""Leaving: in a world of its own, which is gone afterwards."""

import pytest

from tests.mesh import removal
from tests.mesh.world import world

pytestmark = pytest.mark.lab


def test_nothing_left() -> None:
    with world() as mesh:
        print(removal.nothing_left(mesh))
