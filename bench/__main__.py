"""Turns two hosts into numbers: direct, a HAProxy pair and hostmesh, under the same load, in interleaved rounds.

    python -m bench quick [--rounds N] [--seconds S]        (make bench-quick)

Only ratios within one run mean anything. Written to bench/results/quick.json, with the command and the spread.
"""

import argparse
import json
import re
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contenders import Contender, cpu_seconds, start
from tests.mesh.world import World, world

RESULTS = Path(__file__).parent / "results"
CONNECTIONS = 64


@dataclass(frozen=True)
class Round:
    """One contender under load for some seconds. CPU in microseconds a request; latency in ms."""

    rps: float
    p50: float
    p99: float
    errors: int
    proxy_cpu_us: float
    app_cpu_us: float


def measure(w: World, contender: Contender, seconds: int) -> Round:
    """Load one contender with keep-alive connections as hard as it goes."""
    before = [cpu_seconds(w.lab[h], u) for h, u in contender.proxies], cpu_seconds(w.h2, contender.app)
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", contender.url]
    if contender.meshed:
        result = w.as_unit("bench-load", command, timeout=seconds + 20)
    else:
        result = w.h1.exec(command, timeout=seconds + 20)
    said = result.must().stdout
    requests = int(_found(r"(\d+) requests in", said))
    after = [cpu_seconds(w.lab[h], u) for h, u in contender.proxies], cpu_seconds(w.h2, contender.app)
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout|Non-2xx or 3xx responses:?) (\d+)", said)))
    return Round(
        rps=float(_found(r"Requests/sec:\s+([\d.]+)", said)),
        p50=_milliseconds(_found(r"\n +50%\s+(\S+)", said)),
        p99=_milliseconds(_found(r"\n +99%\s+(\S+)", said)),
        errors=errors,
        proxy_cpu_us=1e6 * (sum(after[0]) - sum(before[0])) / requests,
        app_cpu_us=1e6 * (after[1] - before[1]) / requests,
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if not match:
        raise ValueError(f"wrk said nothing that fits {pattern!r}:\n{text}")
    return match[1]


def _milliseconds(text: str) -> float:
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def tell(what: str) -> None:
    """Progress, beside the result."""
    print(what, file=sys.stderr, flush=True)


def quick(rounds: int, seconds: int) -> dict[str, object]:
    """All contenders, interleaved; medians, spread, and the ratios of DESIGN section 12 that this can tell."""
    with world(tell) as w:
        contenders = start(w)
        for contender in contenders:
            measure(w, contender, 1)
        seen: dict[str, list[Round]] = {c.name: [] for c in contenders}
        for number in range(1, rounds + 1):
            for contender in contenders:
                one = measure(w, contender, seconds)
                seen[contender.name].append(one)
                tell(f"round {number}/{rounds} {contender.name:10} {one.rps:9.0f} requests/s  p99 {one.p99:.2f} ms")
    return summary(seen)


def summary(seen: dict[str, list[Round]]) -> dict[str, object]:
    """Medians and spread of every figure, and the ratios."""
    fields = list(Round.__dataclass_fields__)
    medians = {n: {f: statistics.median(getattr(r, f) for r in rs) for f in fields} for n, rs in seen.items()}
    spread = {
        n: {f: [min(getattr(r, f) for r in rs), max(getattr(r, f) for r in rs)] for f in fields}
        for n, rs in seen.items()
    }
    ours = medians["hostmesh"]
    ratios = {
        "rps_vs_direct": ours["rps"] / medians["direct"]["rps"],
        "rps_vs_haproxy_l7": ours["rps"] / medians["haproxy"]["rps"],
        "cpu_vs_haproxy_l7": ours["proxy_cpu_us"]
        / ours["app_cpu_us"]
        / (medians["haproxy"]["proxy_cpu_us"] / medians["haproxy"]["app_cpu_us"]),
    }
    return {
        "ratios": ratios,
        "medians": medians,
        "spread": spread,
        "rounds": {n: [asdict(r) for r in rs] for n, rs in seen.items()},
    }


def main() -> int:
    """Run, print the table, keep the figures; 1 when hostmesh is below 0.7 of HAProxy's highest RPS."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("what", choices=["quick"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    options = parser.parse_args()
    result = quick(options.rounds, options.seconds)
    result["command"] = f"python -m bench quick --rounds {options.rounds} --seconds {options.seconds}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quick.json").write_text(json.dumps(result, indent=1) + "\n")
    medians: dict[str, dict[str, float]] = result["medians"]  # type: ignore[assignment]
    columns = {
        "rps": "requests/s",
        "p50": "p50 ms",
        "p99": "p99 ms",
        "errors": "errors",
        "proxy_cpu_us": "proxies us/request",
    }
    print(f"{'':10}" + "".join(f"{title:>20}" for title in columns.values()))
    for name, figures in medians.items():
        print(f"{name:10}" + "".join(f"{figures[column]:20.2f}" for column in columns))
    ratios: dict[str, float] = result["ratios"]  # type: ignore[assignment]
    print("  ".join(f"{key} {value:.2f}" for key, value in ratios.items()))
    return 0 if ratios["rps_vs_haproxy_l7"] >= 0.7 else 1


if __name__ == "__main__":
    sys.exit(main())
