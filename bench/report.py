"""Turns samples into what people and other programs read: tables in the terminal, and a JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import targets
from bench.loads import LOADS
from bench.prices import Prices
from bench.rounds import Figure, Samples
from bench.targets import BY_TIME, CHANGES, FLOORS, MEMORY_TARGETS, TARGETS

COLUMNS = {
    "rps": ("requests/s", "{:.0f}"),
    "gbit": ("Gbit/s", "{:.2f}"),
    "p50": ("p50 ms", "{:.3f}"),
    "p99": ("p99 ms", "{:.2f}"),
    "x_app": ("x app", "{:.2f}"),
    "proxy_cpu_us": ("proxies CPU us", "{:.1f}"),
    "errors": ("errors", "{:.0f}"),
}


@dataclass(frozen=True)
class Seen:
    """All that a run has measured. ``memory`` in MB by what it is of; ``change``: of a policy, to its effect,
    in ms. ``prices``: of features."""

    samples: Samples
    ratios: Mapping[str, Figure]
    memory: Mapping[str, Figure]
    change: Figure | None
    prices: Prices


def figures(samples: Samples) -> dict[str, dict[str, dict[str, Figure]]]:
    """Median and spread of every figure, by load and contender."""
    return {
        load: {
            name: {key: Figure.of([one[key] for one in rounds]) for key in rounds[0]}
            for name, rounds in seen.items()
            if rounds
        }
        for load, seen in samples.items()
    }


def print_loads(samples: Samples) -> None:
    """One table a load: medians, and how far the rounds lie apart."""
    for load, seen in figures(samples).items():
        columns = [c for c in COLUMNS if any(c in of for of in seen.values())]
        print(f"\n{LOADS[load].title}")
        print(f"  {'':10}" + "".join(f"{COLUMNS[c][0]:>26}" for c in columns))
        for name, of in seen.items():
            print(f"  {name:10}" + "".join(f"{_cell(of[c], COLUMNS[c][1]):>26}" for c in columns))


def _cell(figure: Figure, form: str) -> str:
    return f"{form} ({form}-{form})".format(figure.median, figure.low, figure.high)


def print_targets(measured: Mapping[str, Figure]) -> None:
    """What was promised, what came out, which marks it reaches."""
    print(f"\n{'target':52}{'measured':>20}    first   second     goal")
    for target in (*TARGETS, *MEMORY_TARGETS):
        if target.key in measured:
            figure = measured[target.key]
            marks = "  ".join(
                f"{mark:5g} {'+' if kept else '-'}"
                for mark, kept in zip(target.marks, target.reached(figure.median), strict=True)
            )
            print(f"{target.title:52}{_cell(figure, '{:.2f}'):>20}  {marks}")
    print("+ reached, - not reached; median (lowest-highest round)")
    for key, title in BY_TIME.items():
        if key in measured:
            print(f"{title:52}{_cell(measured[key], '{:.2f}'):>20}")


def print_changes(ratios: Mapping[str, Figure]) -> None:
    """This checkout against another one, where one was measured beside it."""
    for key, (title, _, _) in CHANGES.items():
        if key in ratios:
            print(f"against before: {title:40}{_cell(ratios[key], '{:.3f}'):>24}")


def print_floors(ratios: Mapping[str, Figure]) -> bool:
    """Whether hostmesh is nowhere below HAProxy's layer 7."""
    kept = True
    for floor in FLOORS:
        if floor.key in ratios:
            holds = floor.reached(ratios[floor.key].median)[0]
            kept = kept and holds
            print(f"floor: {floor.title} {ratios[floor.key].median:.2f}: {'kept' if holds else 'BROKEN'}")
    return kept


def print_memory(memory: Mapping[str, Figure]) -> None:
    """Resident memory of everything that was looked at."""
    print("\nresident memory, MB (of a pair: the mean, and both hosts)")
    for name, figure in memory.items():
        print(f"  {name:34}{_cell(figure, '{:.1f}'):>24}")


def print_prices(prices: Prices) -> None:
    """What a request costs with a feature, against the same without it."""
    if prices:
        print(f"\n{'against the same load without':40}{'CPU of both proxies':>26}{'requests/s':>26}")
    for feature, of in prices.items():
        print(f"  {feature:38}{_cell(of['cpu'], '{:.2f}'):>26}{_cell(of['rps'], '{:.2f}'):>26}")


def print_all(seen: Seen) -> bool:
    """All tables; whether the floor was kept."""
    print_loads(seen.samples)
    if seen.memory:
        print_memory(seen.memory)
    if seen.change:
        print(f"\na policy file's change to its effect, ms{_cell(seen.change, '{:.0f}'):>24}")
    print_prices(seen.prices)
    print_targets({**seen.ratios, **targets.memory(seen.memory)})
    print_changes(seen.ratios)
    return print_floors(seen.ratios)


def write(path: Path, seen: Seen, about: Mapping[str, object]) -> None:
    """All of it, for other programs."""
    promised = targets.memory(seen.memory)
    told = {
        "about": about,
        "ratios": {key: figure.median for key, figure in seen.ratios.items()},
        "ratios_spread": {key: [figure.low, figure.high] for key, figure in seen.ratios.items()},
        "rss_mb": {key: figure.median for key, figure in promised.items()},
        "rss_mb_spread": {key: [figure.low, figure.high] for key, figure in promised.items()},
        "memory_mb": {name: asdict(figure) for name, figure in seen.memory.items()},
        "policy_change_ms": asdict(seen.change) if seen.change else None,
        "prices": {
            feature: {name: asdict(figure) for name, figure in of.items()} for feature, of in seen.prices.items()
        },
        "figures": {
            load: {name: {key: asdict(figure) for key, figure in of.items()} for name, of in loads.items()}
            for load, loads in figures(seen.samples).items()
        },
        "rounds": seen.samples,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
