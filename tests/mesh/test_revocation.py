"""Revocation on real hosts."""

import pytest

from tests.mesh import revoking
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("show", [revoking.unit, revoking.removed_host], ids=lambda show: show.__name__)
def test_shown(mesh: World, show: object) -> None:
    assert callable(show)
    print(show(mesh))
