"""Deny means now, and audit says what enforcing would refuse: on real hosts with stock services."""

from collections.abc import Callable

import pytest

from tests.mesh import audit, denial
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    "show",
    [
        denial.over_the_wire,
        denial.by_the_caller,
        denial.streaming,
        denial.on_one_host,
        denial.in_plain_text,
        denial.passed_through,
        denial.taken_away,
        denial.audit_ends,
        audit.says_what_enforcing_would_do,
    ],
    ids=lambda show: show.__name__,
)
def test_shown(mesh: World, show: Callable[[World], str]) -> None:
    print(show(mesh))


def test_many(mesh: World, rounds: Callable[[int, int], int]) -> None:
    print(denial.many(mesh, rounds(500, 5_000)))
