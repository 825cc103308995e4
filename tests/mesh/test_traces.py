"""Traces of calls between real hosts arrive in a real collector, and a dead one costs nobody anything."""

from collections.abc import Iterator

import pytest

from tests.mesh import tracing
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def traced(mesh: World) -> Iterator[tracing.Traced]:
    """The world with a collector, and services that pass traces on."""
    with tracing.traced(mesh) as of:
        yield of


@pytest.mark.parametrize(
    "show", [tracing.one_trace, tracing.b3, tracing.opaque, tracing.failures_only], ids=lambda show: show.__name__
)
def test_shown(traced: tracing.Traced, show: object) -> None:
    assert callable(show)
    with traced.collector.running():
        print(show(traced))


@pytest.mark.parametrize("show", [tracing.stopped_collector, tracing.silent_collector], ids=lambda show: show.__name__)
def test_a_dead_collector_costs_nothing(traced: tracing.Traced, show: object) -> None:
    assert callable(show)
    print(show(traced))
