"""What `hostmesh top` makes of two readings of the counters: sums, rates, quantiles, a table that fits."""

import pytest

from hostmesh.cli.top_rates import HEAD, SORTS, Rates, quantile, rates, table
from hostmesh.observe.totals import open_breakers, unit_counts
from hostmesh.wire.agent_control import Counts, UnitCounts
from hostmesh.wire.proxy_control import Circuit, Stats, TrafficCount

BOUNDS = [1_000, 10_000]


def row(direction: str, code_class: str, count: int, retries: int = 0, unit: str = "a.service") -> TrafficCount:
    buckets = [count, 0, 0]
    return TrafficCount(unit, direction, "p", "s", 80, "http", code_class, count, retries, 10, 20, 5, buckets)


def stats(*traffic: TrafficCount, circuits: dict[str, Circuit] | None = None) -> Stats:
    return Stats(1, BOUNDS, list(traffic), {}, {}, circuits=circuits or {})


def counts(at: float, *units: UnitCounts) -> Counts:
    return Counts(1, at, 3, [], BOUNDS, list(units))


def unit(requests: int, errors: int = 0, buckets: list[int] | None = None) -> UnitCounts:
    return UnitCounts("a.service", "in", requests, errors, 0, 4, 1000, 2000, buckets or [requests, 0, 0], 7_300)


def test_rows_are_summed_up_by_unit_and_direction() -> None:
    told = stats(
        row("inbound", "2xx", 5), row("local", "5xx", 2), row("inbound", "denied", 9), row("outbound", "error", 1, 3)
    )
    coming, calling, silent = unit_counts(told, {"a.service": 77, "b.service": 0})
    assert coming == UnitCounts("a.service", "in", 7, 2, 9, 0, 30, 60, [7, 0, 0], 77)
    assert calling == UnitCounts("a.service", "out", 1, 1, 0, 3, 10, 20, [1, 0, 0], 77)
    assert silent == UnitCounts("b.service", "", 0, 0, 0, 0, 0, 0, [], 0)


def test_breakers_that_are_open_are_named() -> None:
    circuit = Circuit({}, {}, {"requests": 1, "pending": 0}, {}, 0, 0, 0)
    assert open_breakers(stats(circuits={"db": circuit})) == ["db: requests"]


def test_rates_are_of_the_time_between() -> None:
    [found] = rates(counts(10.0, unit(100, 10)), counts(12.0, unit(300, 60)), 100)
    assert (found.requests, found.errors_percent, found.retries, found.bytes_in) == (100.0, 25.0, 0.0, 0.0)
    assert found.p50 == pytest.approx(0.0005) and found.certificate_seconds == 7_200


def test_counters_that_begin_anew_are_no_burst() -> None:
    [found] = rates(counts(10.0, unit(100)), counts(11.0, unit(30)), 100)
    assert (found.requests, found.retries, found.bytes_out) == (0.0, 0.0, 0.0)
    [found] = rates(counts(10.0), counts(11.0, unit(30)), 100)
    assert (found.requests, found.retries, found.bytes_out) == (30.0, 4.0, 2000.0)


def test_nothing_happened() -> None:
    [found] = rates(counts(10.0, unit(30)), counts(11.0, unit(30)), 100)
    assert (found.requests, found.errors_percent, found.p50, found.p99) == (0.0, 0.0, None, None)


@pytest.mark.parametrize(
    ("counted", "share", "seconds"),
    [
        ([10, 0, 0], 0.5, 0.0005),
        ([0, 10, 0], 0.5, 0.0055),
        ([5, 5, 0], 0.5, 0.001),
        ([5, 5, 0], 0.99, 0.00982),
        ([0, 0, 3], 0.5, 0.01),
        ([0, 0, 0], 0.5, None),
        ([], 0.5, None),
    ],
)
def test_quantiles(counted: list[int], share: float, seconds: float | None) -> None:
    assert quantile(counted, BOUNDS, share) == (None if seconds is None else pytest.approx(seconds))


A = Rates("a.service", "in", 1234.0, 5.0, 0.0012, 1.5, 0.0, 2.0, 12_300_000.0, 999.0, 7_260)
B = Rates("b.service", "", 0.0, 0.0, None, None, 0.0, 0.0, 0.0, 0.0, None)


def test_a_table_for_a_pipe_has_all_columns() -> None:
    head, first, second = table([A, B], None).splitlines()
    assert head.split("  ")[0] == "UNIT" and all(word in head for word in HEAD)
    assert first.split() == ["a", "in", "1234", "5.0", "1.2", "ms", "1.50", "s", "0.0", "2.0", "12M", "999", "2h01m"]
    assert second.split() == ["b", "-", "0.0", "0.0", "-", "-", "0.0", "0.0", "0", "0", "none"]


@pytest.mark.parametrize("width", [100, 72, 50, 36, 20])
def test_a_narrow_terminal_gets_the_columns_for_which_there_is_room(width: int) -> None:
    lines = table([A, B], width).splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= width
    assert lines[0].startswith("UNIT  DIR")
    assert ("CERT" in lines[0]) == (width >= 80)


def test_what_is_most_comes_first() -> None:
    assert [one.unit for one in sorted([B, A], key=SORTS["requests"])] == ["a.service", "b.service"]
    assert [one.unit for one in sorted([A, B], key=SORTS["cert"])] == ["b.service", "a.service"]
