"""What the bench's commands have in common: progress, an orderly end, and what is said of a run beside its figures."""

import datetime
import os
import platform
import signal
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def tell(what: str) -> None:
    """Progress, beside the result."""
    print(what, file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """SIGTERM and SIGHUP take the lab down, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def about(module: str) -> dict[str, object]:
    """Of this run: how it was called, when, on what."""
    return {
        "command": f"python -m {module} " + " ".join(sys.argv[1:]),
        "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "processor": _processor(),
    }


def _processor() -> dict[str, str]:
    """Which one it is: ratios of programs differ between them (proc_cpuinfo(5); the first one's lines)."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    wanted = {"model name", "cpu family", "model", "stepping", "bugs"}
    return {name.strip(): value.strip() for name, _, value in lines if name.strip() in wanted}
