"""Turns two readings of the counters into what happened between them, and that into a table that fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from hostmesh.cli import show
from hostmesh.wire.agent_control import Counts, UnitCounts

# In the order in which they stand; the last of `_SPARED` goes first where there is no room.
HEAD = ("UNIT", "DIR", "REQ/S", "ERR %", "P50", "P99", "RETRY/S", "DENIED/S", "B/S IN", "B/S OUT", "CERT")
_SPARED = ("RETRY/S", "P50", "DENIED/S", "B/S OUT", "B/S IN", "CERT")


@dataclass(frozen=True, slots=True)
class Rates:
    """One unit and direction: a second of it. p50 and p99 in seconds; None where there was nothing to time."""

    unit: str
    direction: str
    requests: float
    errors_percent: float
    p50: float | None
    p99: float | None
    retries: float
    denied: float
    bytes_in: float
    bytes_out: float
    certificate_seconds: int | None


SORTS = {
    "unit": lambda rates: (rates.unit, rates.direction),
    "requests": lambda rates: -rates.requests,
    "errors": lambda rates: -rates.errors_percent,
    "p50": lambda rates: -(rates.p50 or 0),
    "p99": lambda rates: -(rates.p99 or 0),
    "retries": lambda rates: -rates.retries,
    "denied": lambda rates: -rates.denied,
    "bytes": lambda rates: -rates.bytes_in - rates.bytes_out,
    "cert": lambda rates: rates.certificate_seconds or 0,
}


def rates(before: Counts, after: Counts, now: int) -> list[Rates]:
    """What happened between two readings. now: seconds since the epoch."""
    earlier = {(one.unit, one.direction): one for one in before.units}
    seconds = max(after.at - before.at, 1e-3)
    return [_rates(earlier.get((one.unit, one.direction)), one, seconds, after.bounds_us, now) for one in after.units]


def _rates(before: UnitCounts | None, after: UnitCounts, seconds: float, bounds_us: list[int], now: int) -> Rates:
    if before is None:
        before = _nothing(after)
    elif before.requests > after.requests or before.denied > after.denied:
        before = after  # the proxy has begun anew, or a series has ended: the next second tells
    requests = after.requests - before.requests
    errors = after.errors - before.errors
    counts = [late - early for early, late in zip(before.buckets, after.buckets, strict=False)]
    return Rates(
        unit=after.unit,
        direction=after.direction,
        requests=requests / seconds,
        errors_percent=100 * errors / requests if requests else 0.0,
        p50=quantile(counts, bounds_us, 0.5),
        p99=quantile(counts, bounds_us, 0.99),
        retries=(after.retries - before.retries) / seconds,
        denied=(after.denied - before.denied) / seconds,
        bytes_in=(after.bytes_in - before.bytes_in) / seconds,
        bytes_out=(after.bytes_out - before.bytes_out) / seconds,
        certificate_seconds=after.svid_not_after - now if after.svid_not_after else None,
    )


def _nothing(of: UnitCounts) -> UnitCounts:
    return UnitCounts(of.unit, of.direction, 0, 0, 0, 0, 0, 0, [0] * len(of.buckets), of.svid_not_after)


def quantile(counts: Sequence[int], bounds_us: Sequence[int], share: float) -> float | None:
    """In seconds, as Prometheus reads a histogram: evenly spread within a bucket; what is beyond the last is at it."""
    wanted = share * sum(counts)
    if not wanted:
        return None
    below, low = 0, 0
    for count, high in zip(counts, bounds_us, strict=False):
        if below + count >= wanted:
            return (low + (high - low) * (wanted - below) / count) / 1e6
        below, low = below + count, high
    return bounds_us[-1] / 1e6


def table(found: Sequence[Rates], width: int | None) -> str:
    """In ``width`` columns of a terminal; None: as wide as it is."""
    head, rows = list(HEAD), [_row(one) for one in found]
    spared = list(_SPARED)
    while width is not None and spared and _width(show.table(head, rows)) > width:
        column = head.index(spared.pop())
        del head[column]
        for row in rows:
            del row[column]
    text = show.table(head, rows)
    return text if width is None else "\n".join(line[:width] for line in text.splitlines())


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _row(one: Rates) -> list[str]:
    return [
        one.unit.removesuffix(".service"),
        one.direction or "-",
        f"{one.requests:.0f}" if one.requests >= 10 else f"{one.requests:.1f}",
        f"{one.errors_percent:.1f}",
        _time(one.p50),
        _time(one.p99),
        f"{one.retries:.1f}",
        f"{one.denied:.1f}",
        _bytes(one.bytes_in),
        _bytes(one.bytes_out),
        _rest(one.certificate_seconds),
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _bytes(count: float) -> str:
    for word in ("", "k", "M"):
        if count < 1000:
            return f"{count:.0f}{word}"
        count /= 1000
    return f"{count:.1f}G"


def _rest(seconds: int | None) -> str:
    if seconds is None:
        return "none"
    return "OVER" if seconds <= 0 else f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
