"""The judge of `make soak`: what is flat passes, and every way to be bad is seen and named."""

from collections.abc import Callable

import pytest

from bench.soak.verdict import Demand, Sample, judge

DEMAND = Demand(kept=1000, rate=200, fresh=100)
STEADY = {
    "p rss_mb": 50.0,
    "p fds": 1000.0,
    "h ports": 3000.0,
    "h half_open": 2.0,
    "h orphaned": 1.0,
    "h conntrack": 0.0,
}
LOAD = {"rate": 200.0, "fresh": 100.0, "open": 1000.0}


def broken(
    change: Callable[[int], dict[str, float]], *, after: float = 20.0, errors: dict[str, int] | None = None
) -> list[str]:
    """What does not hold of samples of half an hour that ``change`` differs from steady ones, by their number."""
    samples: list[Sample] = [{"at": 10.0 * number, **LOAD, **STEADY, **change(number)} for number in range(1, 181)]
    before = {"p fds": 20.0}
    verdicts = judge(samples, warm_up=300, before=before, after={"p fds": after}, errors=errors or {}, demand=DEMAND)
    return [verdict.what for verdict in verdicts if not verdict.holds]


def test_what_is_steady_holds() -> None:
    assert broken(lambda _: {}) == []


def test_the_warm_up_is_not_judged() -> None:
    assert broken(lambda number: {"p rss_mb": 20.0, "rate": 50.0} if number < 30 else {}) == []


def test_noise_is_no_growth() -> None:
    assert broken(lambda number: {"p rss_mb": 50.0 + number % 7, "p fds": 1000.0 + number % 5}) == []


def test_what_a_burst_opens_and_is_closed_again_is_no_growth() -> None:
    assert broken(lambda number: {"p fds": 1500.0 if number > 150 and number % 10 else 1000.0}) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda number: {"p rss_mb": 50.0 + number * 0.015}, "p rss_mb is flat"),
        (lambda number: {"p fds": 1000.0 + number // 4}, "p fds is flat"),
        (lambda number: {"h ports": 3000.0 + number}, "h ports is flat"),
        (lambda _: {"h half_open": 500.0}, "h half_open, median"),
        (lambda _: {"h orphaned": 500.0}, "h orphaned, median"),
        (lambda number: {"h conntrack": float(number == 100)}, "h conntrack, most"),
        (lambda _: {"rate": 190.0}, "requests/s, mean"),
        (lambda _: {"fresh": 90.0}, "connections made/s, mean"),
        (lambda number: {"open": 999.0 if number == 100 else 1000.0}, "open connections, fewest"),
    ],
)
def test_what_is_not_steady_is_named(change: Callable[[int], dict[str, float]], what: str) -> None:
    assert broken(change) == [what]


def test_one_error_is_too_many() -> None:
    assert broken(lambda _: {}, errors={"fresh: no answer": 1}) == ["errors"]


def test_what_is_not_given_back() -> None:
    assert broken(lambda _: {}, after=60.0) == ["left behind after the load"]
