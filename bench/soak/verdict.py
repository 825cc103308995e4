"""Turns what was seen in a soak into what is flat and what is not: pure, no I/O."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Sample = Mapping[str, float]
FLAT_MB, FLAT_NUMBER = (1.0, 0.03), (16.0, 0.005)  # so much, or that share of itself
RATE_KEPT = 0.98
HALF_OPEN_AT_MOST = 0.02  # of the connections that are made in ten seconds
LEFT_OVER = 32.0  # descriptors, once the load is gone: pooled connections and streams that wait to be used again


@dataclass(frozen=True)
class Verdict:
    """One thing that was judged."""

    what: str
    seen: str
    wanted: str
    holds: bool


@dataclass(frozen=True)
class Demand:
    """What a load had to be: connections open all the time, requests a second, connections made a second."""

    kept: int
    rate: float
    fresh: float


def flat_memory(name: str, at: Sequence[float], values: Sequence[float]) -> Verdict:
    """By how much does the line of least squares rise from the first to the last?"""
    rise = statistics.linear_regression(at, values).slope * (at[-1] - at[0])
    return _flat(name, f"{values[0]:.1f} to {values[-1]:.1f} MB, the line rises by", rise, values, FLAT_MB)


def flat_number(name: str, values: Sequence[float]) -> Verdict:
    """Is the lowest of the second half above that of the first? What a burst opens is pooled and closed again; what is
    lost is not."""
    half = len(values) // 2
    first, second = min(values[:half]), min(values[half:])
    return _flat(name, f"{first:.0f} to {second:.0f} at the lowest, which is", second - first, values, FLAT_NUMBER)


def _flat(name: str, seen: str, rise: float, values: Sequence[float], noise: tuple[float, float]) -> Verdict:
    least, share = noise
    allowed = max(least, share * statistics.fmean(values))
    return Verdict(f"{name} is flat", f"{seen} {rise:+.1f}", f"at most {allowed:+.1f}", rise <= allowed)


def judge(
    samples: Sequence[Sample],
    *,
    warm_up: float,
    before: Sample,
    after: Sample,
    errors: Mapping[str, int],
    demand: Demand,
) -> list[Verdict]:
    """All of it. ``samples`` have `at`, `rate`, `fresh` and `open` of the load beside what `watch.py` sees."""
    judged = [sample for sample in samples if sample["at"] >= warm_up]
    at = [sample["at"] for sample in judged]
    total = sum(errors.values())
    told = ", ".join(f"{count} x {what}" for what, count in errors.items())
    verdicts = [
        Verdict("errors", told or "none", "none", total == 0),
        _least("requests/s, mean", statistics.fmean(s["rate"] for s in judged), RATE_KEPT * demand.rate),
        _least("connections made/s, mean", statistics.fmean(s["fresh"] for s in judged), RATE_KEPT * demand.fresh),
        _least("open connections, fewest", min(s["open"] for s in judged), demand.kept),
    ]
    for name in judged[0]:
        values = [sample[name] for sample in judged]
        if name.endswith(" rss_mb"):
            verdicts.append(flat_memory(name, at, values))
        elif name.endswith((" fds", " ports")):
            verdicts.append(flat_number(name, values))
        elif name.endswith((" half_open", " orphaned")):
            verdicts.append(_most(f"{name}, median", statistics.median(values), HALF_OPEN_AT_MOST * 10 * demand.fresh))
        elif name.endswith(" conntrack"):
            verdicts.append(_most(f"{name}, most", max(values), 0))
    left = left_over(before, after)
    seen = ", ".join(f"{name} {before[name]:.0f} before, {after[name]:.0f} after" for name in left)
    return [*verdicts, Verdict("left behind after the load", seen or "nothing", "nothing", not left)]


def left_over(before: Sample, after: Sample) -> list[str]:
    """What the load has not given back."""
    return [name for name in before if name.endswith(" fds") and after[name] > before[name] + LEFT_OVER]


def _least(what: str, value: float, wanted: float) -> Verdict:
    return Verdict(what, f"{value:.0f}", f"at least {wanted:.0f}", value >= wanted)


def _most(what: str, value: float, wanted: float) -> Verdict:
    return Verdict(what, f"{value:.0f}", f"at most {wanted:.0f}", value <= wanted)
