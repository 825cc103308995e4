"""Sums the proxy's counters up by unit and direction, for `hostmesh top`."""

from collections.abc import Mapping

from hostmesh.wire.agent_control import UnitCounts
from hostmesh.wire.proxy_control import Stats, TrafficCount

_FAILED = frozenset({"5xx", "error"})


def unit_counts(stats: Stats, units: Mapping[str, int]) -> list[UnitCounts]:
    """One for each unit and direction. units: those of this host, to the end of their SVID (0: none)."""
    rows: dict[tuple[str, str], list[TrafficCount]] = {}
    for row in stats.traffic:
        rows.setdefault((row.unit, "out" if row.direction == "outbound" else "in"), []).append(row)
    silent = [(unit, "") for unit in units if not {(unit, "in"), (unit, "out")} & rows.keys()]
    return [
        _sum(unit, direction, rows.get((unit, direction), []), units.get(unit, 0))
        for unit, direction in sorted([*rows, *silent])
    ]


def _sum(unit: str, direction: str, rows: list[TrafficCount], svid_not_after: int) -> UnitCounts:
    let_pass = [row for row in rows if row.code_class != "denied"]
    return UnitCounts(
        unit=unit,
        direction=direction,
        requests=sum(row.count for row in let_pass),
        errors=sum(row.count for row in let_pass if row.code_class in _FAILED),
        denied=sum(row.count for row in rows if row.code_class == "denied"),
        retries=sum(row.retries for row in rows),
        bytes_in=sum(row.bytes_in for row in rows),
        bytes_out=sum(row.bytes_out for row in rows),
        buckets=[sum(counts) for counts in zip(*(row.buckets for row in let_pass), strict=True)],
        svid_not_after=svid_not_after,
    )


def open_breakers(stats: Stats) -> list[str]:
    """Services of which something is used up, and what."""
    return sorted(
        f"{service}: {resource}"
        for service, circuit in stats.circuits.items()
        for resource, is_open in circuit.open.items()
        if is_open
    )
