"""Turns two meshed hosts and a long load into a verdict: no error, nothing that grows, nothing left behind.

    python -m bench.soak full  [--seconds S]      (make soak: half an hour)
    python -m bench.soak quick                    (make soak-quick: two minutes, smaller, judged the same way)

hostmesh as users run it: intercepted, layer-7 policy, metrics asked for, traces at 1 %. One process on h1, the unit
`bench-load`, holds connections of HTTP and of opaque bytes, asks at a rate, and makes connections anew.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.command import RESULTS, about, end_on_signals, tell
from bench.soak.verdict import Demand, Sample, Verdict, judge, left_over
from bench.soak.watch import Watch
from bench.testbed import BODY, CALLER, MESHED_PORT, SERVICE, Testbed, application, two_hosts
from tests.lab.waiting import wait_until

LOAD = Path(__file__).parent / "load.py"
ON_HOST = "/opt/bench/load.py"
EVERY = 10
AGAIN_AFTER = 100.0  # a held connection is asked so often, seconds: longer than any pool keeps anything
BUSY, FRESH = "busy", "fresh"
BUSY_CONNECTIONS = 64
OPAQUE, OPAQUE_PORT = "bench-opaque", 8002
OPAQUE_POLICY = f"""
[service.ports]
{OPAQUE_PORT} = "tcp"
[[inbound.allow]]
from = ["{CALLER}"]
"""


@dataclass(frozen=True)
class Size:
    """``held`` of each kind; ``rate``: requests a second on kept connections; ``fresh``: connections made a second."""

    seconds: int
    warm_up: int
    held: int
    rate: int
    fresh: int
    drain: float  # seconds in which all must be given back

    def groups(self) -> list[dict[str, object]]:
        """As `load.py` takes them."""
        slow = self.held / AGAIN_AFTER
        http, opaque = {"host": SERVICE, "port": MESHED_PORT}, {"host": OPAQUE, "port": OPAQUE_PORT}
        return [
            {"name": "held, HTTP", **http, "connections": self.held, "rate": slow},
            {"name": "held, opaque", **opaque, "connections": self.held, "rate": slow},
            {"name": BUSY, **http, "connections": BUSY_CONNECTIONS, "rate": self.rate - 2 * slow},
            {"name": FRESH, **http, "connections": 0, "rate": self.fresh},
        ]

    def demand(self) -> Demand:
        """What the load must have been."""
        return Demand(2 * self.held + BUSY_CONNECTIONS, self.rate, self.fresh)


SIZES = {
    "full": Size(seconds=1800, warm_up=300, held=5000, rate=2000, fresh=1000, drain=180.0),
    "quick": Size(seconds=60, warm_up=20, held=500, rate=300, fresh=100, drain=45.0),
}


def main() -> int:
    """Soak, judge, keep the figures; 1 when something does not hold."""
    options = _options()
    end_on_signals()
    size = SIZES[options.what] if options.seconds is None else _of_length(SIZES[options.what], options.seconds)
    run = about("bench.soak") | {"size": asdict(size)}
    with two_hosts(tell) as bed:
        _serve_opaque(bed)
        watch = Watch.of(bed)
        before = watch.sample()
        samples: list[Sample] = []
        errors: dict[str, int] = {}
        for said in _load(bed, size):
            errors = said["errors"]
            samples.append({**_of_load(said), **watch.sample()})
            tell(_in_short(samples[-1], errors))
        tell("the load is over: waiting for what it leaves behind")
        after = _drained(watch, before, size)
    verdicts = judge(samples, warm_up=size.warm_up, before=before, after=after, errors=errors, demand=size.demand())
    print_verdicts(verdicts)
    told = {"about": run, "verdicts": [asdict(v) for v in verdicts], "before": before, "after": after}
    options.output.parent.mkdir(exist_ok=True)
    columns = {name: [round(sample[name], 2) for sample in samples] for name in samples[0]}
    options.output.write_text(json.dumps({**told, "samples": columns}) + "\n")
    if options.what == "full":  # matplotlib is there for that one only
        from bench.soak.plot import draw  # noqa: PLC0415

        draw(samples, size.warm_up, options.output.with_suffix(".svg"))
    tell(f"written: {options.output}")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.soak")
    parser.add_argument("what", choices=list(SIZES))
    parser.add_argument("--seconds", type=int, help="of the load, another length than the size's own")
    parser.add_argument("--output", type=Path, help="the JSON file; default: in bench/results")
    options = parser.parse_args()
    if options.output is None:
        whole = options.what == "full" and options.seconds is None
        options.output = RESULTS / ("soak.json" if whole else f"soak-{options.what}.json")
    return options


def _of_length(size: Size, seconds: int) -> Size:
    return replace(size, seconds=seconds, warm_up=min(size.warm_up, seconds // 3))


def _serve_opaque(bed: Testbed) -> None:
    """A second service like the bench's own, carried as bytes: each of its connections goes all the way."""
    world, unit = bed.world, f"{OPAQUE}.service"
    application(bed, OPAQUE, OPAQUE_PORT)
    bed.h2.exec(["hostmesh", "controller", "grant", "h2", unit]).must()
    bed.h2.exec(["hostmesh", "enable", unit]).must()
    world.write_policy(bed.h2, unit, OPAQUE_POLICY)
    bed.h2.systemctl("restart", unit)
    ask = ["curl", "-sS", "-o", "/dev/null", "--max-time", "5", "--fail", f"http://{OPAQUE}:{OPAQUE_PORT}/"]
    wait_until(lambda: world.as_unit(CALLER, ask).ok, f"{OPAQUE} answers", 20.0, 0.1)


def _load(bed: Testbed, size: Size) -> Iterator[dict[str, Any]]:
    """What the load says, as it says it."""
    bed.h1.write(ON_HOST, LOAD.read_text())
    told = json.dumps({"body": BODY, "seconds": size.seconds, "every": EVERY, "groups": size.groups()})
    tell(f"opening {size.demand().kept} connections; then {size.seconds} s of load")
    with bed.h1.popen(["hostmesh", "run", "--unit", CALLER, "--", "python3", ON_HOST, told]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "opened" in said:
                tell(f"open: {said['opened']}")
            else:
                yield said
        _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with {process.returncode}: {stderr}")


def _of_load(said: dict[str, Any]) -> Sample:
    """The figures of one report of `load.py`; the times are those of the busy connections, milliseconds."""
    groups = said["groups"]
    kept = [group for name, group in groups.items() if name != FRESH]
    return {
        "at": said["at"],
        "rate": sum(group["rate"] for group in kept),
        "fresh": groups[FRESH]["rate"],
        "open": sum(group["open"] for group in kept),
        "errors": sum(said["errors"].values()),
        **{name: groups[BUSY][name] for name in ("p50", "p99", "slowest")},
    }


def _in_short(sample: Sample, errors: dict[str, int]) -> str:
    shown = [
        f"{sample['at']:6.0f} s  {sample['open']:.0f} open",
        f"{sample['rate']:.0f} requests/s  {sample['fresh']:.0f} new/s",
        f"p50 {sample['p50']:.1f} p99 {sample['p99']:.1f} max {sample['slowest']:.0f} ms",
        *(f"{host} {sample[f'{host}/hostmesh-proxy rss_mb']:.1f} MB {sample[f'{host}/hostmesh-proxy fds']:.0f} fds"
          for host in ("h1", "h2")),
        f"{sample['h1 time_wait']:.0f} time-wait  {sample['h1 ports']:.0f} ports",
    ]  # fmt: skip
    return "  ".join([*shown, *([f"ERRORS {errors}"] if errors else [])])


def _drained(watch: Watch, before: Sample, size: Size) -> Sample:
    """What is seen once all is given back, or when the time for that is over."""
    deadline = time.monotonic() + size.drain
    while True:
        after = watch.sample()
        if not left_over(before, after) or time.monotonic() > deadline:
            return after
        time.sleep(1.0)


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """One line each; what does not hold stands out."""
    for verdict in verdicts:
        print(f"{'holds ' if verdict.holds else 'BROKEN'}  {verdict.what:45} {verdict.seen}  ({verdict.wanted})")


if __name__ == "__main__":
    sys.exit(main())
