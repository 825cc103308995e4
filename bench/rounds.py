"""Turns loads and contenders into samples: interleaved rounds, so that what drifts in the machine meets all alike."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.contenders import Contender
from bench.loads import Figures, Load, check_answer
from bench.testbed import Tell

WARM_UP_SECONDS = 1
Samples = dict[str, dict[str, list[Figures]]]  # load, contender


@dataclass(frozen=True)
class Figure:
    """What several rounds say of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Median and spread."""
        return cls(statistics.median(values), min(values), max(values))


def run(
    contenders: Sequence[Contender],
    loads: Sequence[Load],
    rounds: int,
    *,
    seconds: int | None,
    tell: Tell,
) -> Samples:
    """Every load on every contender that it fits, ``rounds`` times; each round begins with another contender."""
    samples: Samples = {load.name: {c.name: [] for c in contenders if load.fits(c)} for load in loads}
    for contender in contenders:
        check_answer(contender)
        for load in loads:
            if load.fits(contender):
                load.run(contender, WARM_UP_SECONDS)
    for bed in {id(contender.bed): contender.bed for contender in contenders}.values():
        bed.check_congestion_control()
    for number in range(rounds):
        begin = number % len(contenders)
        for load in loads:
            for contender in (*contenders[begin:], *contenders[:begin]):
                if load.fits(contender):
                    one = load.run(contender, seconds or load.seconds)
                    samples[load.name][contender.name].append(one)
                    tell(f"round {number + 1}/{rounds}  {load.name:9}  {contender.name:9} {_in_short(one)}")
        for contender in contenders:
            check_answer(contender)
    return samples


def _in_short(one: Figures) -> str:
    words = {
        "gbit": "{:.2f} Gbit/s",
        "rps": "{:.0f} requests/s",
        "p50": "p50 {:.2f} ms",
        "p99": "p99 {:.2f} ms",
        "x_app": "x app {:.2f}",
    }
    said = [text.format(one[name]) for name, text in words.items() if name in one]
    return "  ".join([*said, *([f"{one['errors']:.0f} ERRORS"] if one["errors"] else [])])
