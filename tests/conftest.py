"""Turns the lab into fixtures. A test that needs root and hasn't got it is an error, never a skip."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.install import hostmesh_layer
from tests.lab.lab import Lab


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: tests that repeat themselves do so as often as is promised, not as often as CI has time for."""
    parser.addoption("--long", action="store_true", help="all repetitions that are promised (make test-long)")


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """``rounds(short, long)``: how often to repeat, by whether ``--long`` was given."""
    return lambda short, long: long if request.config.getoption("--long") else short


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two plain Debian hosts, ``h1`` and ``h2``, shared by the whole run: leave them as you found them."""
    with Lab(("h1", "h2")) as running:
        yield running


@pytest.fixture
def fresh_lab() -> Iterator[Lab]:
    """Two pristine Debian hosts for this test alone: break them as you like (0.5 s)."""
    with Lab(("h1", "h2")) as running:
        yield running


@pytest.fixture(scope="session")
def h1(lab: Lab) -> Host:
    """The shared lab's first host."""
    return lab["h1"]


@pytest.fixture(scope="session")
def h2(lab: Lab) -> Host:
    """The shared lab's second host."""
    return lab["h2"]


@pytest.fixture(scope="session")
def hostmesh_wheels() -> Path:
    """The layer with hostmesh installed from the wheels of ``dist/``; six seconds when they have changed."""
    return hostmesh_layer()


@pytest.fixture
def installed_lab(hostmesh_wheels: Path) -> Iterator[Lab]:
    """Two pristine hosts with hostmesh installed and nothing of it enabled or started, for this test alone."""
    with Lab(("h1", "h2"), layers=[hostmesh_wheels]) as running:
        yield running
