"""Every parser is fuzzed in every run of the tests: what was found once and what a change breaks is found at once."""

from collections.abc import Callable

import pytest

from tests.fuzz.run import TARGETS, build, run


@pytest.mark.timeout(3600)
def test_no_input_breaks_a_parser(rounds: Callable[[int, int], int]) -> None:
    seconds = rounds(30, 600)
    outcomes = list(run(TARGETS, build(), seconds, jobs=2, seed=1))  # what is new is searched for by `make fuzz`
    print("", *outcomes, sep="\n")
    assert len(outcomes) == len(TARGETS)
    least = {target.name: target.least for target in TARGETS}
    for outcome in outcomes:
        assert not outcome.findings, outcome
        assert outcome.executions > least[outcome.target], outcome
