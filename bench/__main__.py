"""Turns two hosts into numbers: direct, hostmesh and its peers under the same loads, in interleaved rounds.

    python -m bench full  [--rounds N] [--seconds S] [--only PART…] [--contenders NAME…]     (make bench)
    python -m bench quick                                                                    (make bench-quick)
    python -m bench full --before CHECKOUT …        with the wheels of another checkout beside it (make wheels there)

Only ratios within one run mean anything. Written to bench/results/, with the command and the spread.
"""

import argparse
import contextlib
import importlib
import os
import sys
from pathlib import Path

from bench import extras, prices, report
from bench.command import RESULTS, about, end_on_signals, tell
from bench.contenders import BEFORE, NEED_OWN_FILES, OURS, STARTS, Contender, hostmesh, start
from bench.layer import bench_layer
from bench.loads import LOADS
from bench.rounds import run
from bench.targets import ratios
from bench.testbed import Testbed, two_hosts
from tests.lab.install import hostmesh_layer

QUICK = {"rounds": 5, "seconds": 4, "only": ["top"], "contenders": ["direct", "haproxy", "hostmesh"]}
ONCE = ("memory", "change", "prices", "units")
PRICE_SECONDS = 2
FULL = {"rounds": 5, "seconds": None, "only": [*LOADS, *ONCE], "contenders": list(STARTS)}


def main() -> int:
    """Measure, print, keep the figures; 1 when hostmesh is below HAProxy's layer 7 or a load had errors."""
    options = _options()
    end_on_signals()
    loads = [LOADS[name] for name in options.only if name in LOADS]
    own_files = any(load.needs_oha for load in loads) or NEED_OWN_FILES & set(options.contenders)
    told = about("bench") | {"load_average_before": os.getloadavg()}
    layers = [bench_layer()] if own_files else []
    with contextlib.ExitStack() as beds:
        bed = beds.enter_context(two_hosts(tell, layers))
        contenders = start(bed, tuple(options.contenders))
        if options.before:
            other = beds.enter_context(two_hosts(tell, layers, hostmesh_layer(options.before)))
            contenders += (hostmesh(other, BEFORE),)
        memory = _memory(bed, contenders) if "memory" in options.only else {}
        samples = run(contenders, loads, options.rounds, seconds=options.seconds, tell=tell)
        ours = [contender for contender in contenders if contender.name == OURS]
        change = extras.change_to_effect(bed, ours[0]) if ours and "change" in options.only else None
        paid = _prices(bed, ours, options) if "prices" in options.only else {}
        if "units" in options.only:  # the last one: the host is another after it
            memory |= extras.with_units(bed, tell)
    seen = report.Seen(samples, ratios(samples), memory, change, paid)
    kept = report.print_all(seen)
    report.write(options.output, seen, told)
    if samples and options.what == "full":  # matplotlib is there for that one only
        plot = importlib.import_module("bench.plot")
        plot.draw(samples, options.output.with_suffix(".svg"))
    tell(f"written: {options.output}")
    errors = sum(one["errors"] for seen in samples.values() for rounds in seen.values() for one in rounds)
    errors += sum(of["errors"].high for of in paid.values())
    return 0 if kept and not errors else 1


def _memory(bed: Testbed, contenders: tuple[Contender, ...]) -> extras.Memory:
    return extras.at_rest(contenders) | extras.with_connections(bed, contenders, tell)


def _prices(bed: Testbed, ours: list[Contender], options: argparse.Namespace) -> prices.Prices:
    if not ours:
        return {}
    return prices.measure(bed, ours[0], rounds=options.rounds, seconds=options.seconds or PRICE_SECONDS, tell=tell)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("what", choices=["full", "quick"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of each load in each round; default: each load's own")
    parser.add_argument("--only", nargs="+", choices=FULL["only"], metavar="PART", help=" ".join(FULL["only"]))
    parser.add_argument("--contenders", nargs="+", choices=list(STARTS), metavar="NAME", help=" ".join(STARTS))
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, its wheels built")
    parser.add_argument("--output", type=Path, help="the JSON file; default: in bench/results")
    options = parser.parse_args()
    whole = options.only is None and options.contenders is None and options.before is None
    for name, value in (QUICK if options.what == "quick" else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.output is None:
        options.output = RESULTS / (
            "quick.json" if options.what == "quick" else "latest.json" if whole else "part.json"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
