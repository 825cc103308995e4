"""Turns a contender into figures: one function a kind of load, each with a tool that a person could run by hand.

A load's figures: `errors` counts every failed request and every answer that is not the right one; times in
milliseconds, CPU in microseconds a request.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from bench.contenders import Contender
from bench.layer import OHA
from bench.testbed import BODY, BULK_BYTES

Figures = dict[str, float]
CONNECTIONS = 64


class WrongAnswerError(Exception):
    """A contender answers something else than the application said."""


@dataclass(frozen=True)
class Load:
    """``run(contender, seconds)``; ``seconds``: how long one round takes in a full bench."""

    name: str
    title: str
    seconds: int
    run: Callable[[Contender, int], Figures]
    needs_oha: bool = False
    local: bool = False

    def fits(self, contender: Contender) -> bool:
        """Whether the contender is one that this load compares."""
        return not self.local or contender.local_url is not None


def check_answer(contender: Contender) -> None:
    """WrongAnswerError unless the application's own answer arrives, byte for byte."""
    ask = ["curl", "-sS", "--max-time", "10", "--write-out", " %{http_code}", f"{contender.url}/"]
    said = contender.bed.run(ask, host=contender.bed.h1, unit=contender.caller, timeout=30)
    if said != f"{BODY} 200":
        raise WrongAnswerError(f"{contender.name}: curl {contender.url}/ said {said!r}, not {BODY} 200")


def top(contender: Contender, seconds: int, *, says: tuple[str, ...] = ()) -> Figures:
    """As many requests as go through on keep-alive connections. ``says``: more of wrk's options."""
    return _wrk(contender, seconds, contender.url, *says)


def new_connections(contender: Contender, seconds: int) -> Figures:
    """As many as go through where each request comes on a connection of its own."""
    return _wrk(contender, seconds, contender.url, "-H", "Connection: close")


def same_host(contender: Contender, seconds: int) -> Figures:
    """As many as go through from a caller on the service's own host."""
    assert contender.local_url is not None
    return _wrk(contender, seconds, contender.local_url, local=True)


def _wrk(contender: Contender, seconds: int, url: str, *options: str, local: bool = False) -> Figures:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", *options, f"{url}/"]
    bed = contender.bed
    host, unit = (bed.h2, contender.local_caller) if local else (bed.h1, contender.caller)
    meter = Meter(contender)
    said = bed.run(command, host=host, unit=unit, timeout=seconds + 30)
    requests = int(_found(r"(\d+) requests in", said))
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout|Non-2xx or 3xx responses:?) (\d+)", said)))
    return {
        "rps": float(_found(r"Requests/sec:\s+([\d.]+)", said)),
        "p50": _milliseconds(_found(r"\n +50%\s+(\S+)", said)),
        "p99": _milliseconds(_found(r"\n +99%\s+(\S+)", said)),
        "errors": errors,
        **meter.figures(requests),
    }


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if not match:
        raise ValueError(f"wrk said nothing that fits {pattern!r}:\n{text}")
    return match[1]


def _milliseconds(text: str) -> float:
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def open_loop(rate: int) -> Callable[[Contender, int], Figures]:
    """Requests at a rate that does not wait for answers: a late answer delays no request, and is counted from when its
    request was due."""

    def run(contender: Contender, seconds: int) -> Figures:
        command = [
            OHA, "-c", str(CONNECTIONS), "-q", str(rate), "--latency-correction", "-z", f"{seconds}s",
            "--wait-ongoing-requests-after-deadline", "--no-tui", "--output-format", "json", f"{contender.url}/",
        ]  # fmt: skip
        meter = Meter(contender)
        bed = contender.bed
        said = json.loads(bed.run(command, host=bed.h1, unit=contender.caller, timeout=seconds + 30))
        codes, failures = said["statusCodeDistribution"], said["errorDistribution"]
        good = codes.pop("200", 0)
        return {
            "rps": good / said["summary"]["total"],
            "p50": said["latencyPercentiles"]["p50"] * 1000,
            "p99": said["latencyPercentiles"]["p99"] * 1000,
            "errors": sum(codes.values()) + sum(failures.values()),
            **meter.figures(good),
        }

    return run


def bulk(contender: Contender, _: int) -> Figures:
    """One big body, as fast as it comes."""
    command = ["curl", "-sS", "--output", "/dev/null", "--max-time", "60"]
    command += ["--write-out", "%{json}", f"{contender.url}/bulk"]
    meter = Meter(contender)
    said = json.loads(contender.bed.run(command, host=contender.bed.h1, unit=contender.caller, timeout=90))
    whole = said["http_code"] == 200 and said["size_download"] == BULK_BYTES
    return {
        "gbit": said["speed_download"] * 8 / 1e9,
        "errors": 0 if whole else 1,
        **meter.figures(BULK_BYTES / 1e6),
    }


class Meter:
    """Reads CPU at a load's begin and end."""

    def __init__(self, contender: Contender) -> None:
        self._units = {unit.name: unit for unit in (*contender.proxies, *contender.beside, contender.app)}
        self._proxies = [unit.name for unit in contender.proxies]
        self._app = contender.app.name
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        return {name: unit.cpu_seconds() for name, unit in self._units.items()}

    def figures(self, amount: float) -> Figures:
        """CPU since the begin for each of ``amount`` requests (of a bulk load: megabytes): of each unit, of both
        proxies, and of both proxies over the application's (`x_app`)."""
        after = self._read()
        used = {name: after[name] - self._before[name] for name in after}
        proxies = sum(used[name] for name in self._proxies)
        each = {f"cpu_us {name}": 1e6 * seconds / amount for name, seconds in used.items()}
        return {"proxy_cpu_us": 1e6 * proxies / amount, "x_app": proxies / used[self._app], **each}


LOADS = {
    load.name: load
    for load in (
        Load("top", f"highest RPS, {CONNECTIONS} keep-alive", 4, top),
        Load("open1000", "open loop, 1,000 RPS", 4, open_loop(1000), needs_oha=True),
        Load("open3200", "open loop, 3,200 RPS", 4, open_loop(3200), needs_oha=True),
        Load("newconn", "a connection a request", 4, new_connections),
        Load("bulk", "one bulk stream", 4, bulk),
        Load("same-host", "highest RPS, same host", 4, same_host, local=True),
    )
}
