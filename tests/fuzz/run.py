"""Builds the fuzz targets and runs them: each from its seeds, for so many seconds, its findings kept."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import seeds

ROOT = Path(__file__).parents[2]
CRATE = ROOT / "proxy/fuzz"
PLACE = ROOT / "build/fuzz"
FOUND = ROOT / "tests/fuzz/found"
MEMORY_MB = 1024
INPUT_SECONDS = 5
"""No input may take longer, nor the whole more memory: either is a finding."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parser and the inputs from which its fuzzing sets out."""

    name: str
    seeds: Callable[[], Iterable[bytes]]
    python: bool = False
    talks: bool = False
    """It writes a line for much that it refuses: nobody reads them here."""
    least: int = 1_000
    """Executions of half a minute: with fewer nothing was tried."""

    def command(self, folder: Path) -> list[str]:
        """The program, without options."""
        return [sys.executable, "-m", "tests.fuzz.drive", self.name] if self.python else [str(folder / self.name)]


TARGETS = (
    Target("request", seeds.request),
    Target("response", seeds.response),
    Target("body", seeds.body),
    Target("oracle", seeds.request),
    Target("stream", seeds.stream, least=50),  # two handshakes each, and connections that end in their own time
    Target("dns", seeds.dns),
    Target("snapshot", seeds.snapshot),
    Target("route", seeds.route),
    Target("opening", seeds.opening),
    Target("trace", seeds.trace),
    Target("certificate", seeds.certificate),
    Target("control", seeds.control, talks=True),
    Target("jwt", seeds.jwt),
    Target("policy", seeds.policy, python=True),
    Target("settings", seeds.settings, python=True),
    Target("messages", seeds.framed_messages, python=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target. ``findings``: files; run the target's command on one to see it again."""

    target: str
    executions: int
    features: int
    corpus: int
    cpu_seconds: float
    peak_mb: int
    findings: tuple[Path, ...]
    log: Path

    def __str__(self) -> str:
        found = f"FOUND: {', '.join(map(str, self.findings))} ({self.log})" if self.findings else "nothing found"
        return (
            f"{self.target:12} {self.executions:12,} executions {self.features:6,} features {self.corpus:6,} inputs "
            f"{self.cpu_seconds:8.1f} CPU s {self.peak_mb:5} MB  {found}"
        )


def build() -> Path:
    """Build the Rust targets; gives their folder."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=CRATE, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target"))
    [folder] = [found.parent for found in target.glob(f"*/release/{TARGETS[0].name}")]
    return folder


def run(targets: Iterable[Target], folder: Path, seconds: int, jobs: int, seed: int = 0) -> Iterator[Outcome]:
    """Run each for so long, ``jobs`` of them at a time; gives what came of each as it ends.

    seed: 0 for another each time.
    """
    waiting, running = list(targets), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                begun = _Running(waiting.pop(0), folder, seconds, seed)
                running[begun.process.pid] = begun
            pid, status, used = os.wait4(-1, 0)
            if pid in running:
                yield running.pop(pid).outcome(status, used.ru_utime + used.ru_stime)
    finally:
        for left in running.values():
            left.process.kill()
            left.process.wait()


class _Running:
    """A target under way."""

    def __init__(self, target: Target, folder: Path, seconds: int, seed: int) -> None:
        self.target = target
        self.begun = time.time()
        corpus, first = PLACE / "corpus" / target.name, PLACE / "seeds" / target.name
        for made in (corpus, first, PLACE / "found", PLACE / "tmp"):
            made.mkdir(parents=True, exist_ok=True)
        inputs = list(target.seeds())
        for index, data in enumerate(inputs):
            (first / f"{index:03}").write_bytes(data)
        dictionary = PLACE / f"{target.name}.dict"
        dictionary.write_text("# words of the seeds\n" + "".join(seeds.words(inputs)))
        self.log = PLACE / f"{target.name}.log"
        known = FOUND / target.name
        options = [
            f"-seed={seed}",
            f"-max_total_time={seconds}",
            f"-timeout={INPUT_SECONDS}",
            f"-rss_limit_mb={MEMORY_MB}",
        ]
        options += [f"-dict={dictionary}", f"-artifact_prefix={PLACE}/found/{target.name}-", "-print_final_stats=1"]
        options += ["-close_fd_mask=2"] if target.talks else []
        folders = [str(corpus), str(first), *([str(known)] if known.is_dir() else [])]
        with self.log.open("w") as log:
            command = ["setpriv", "--pdeathsig", "KILL", *target.command(folder), *options, *folders]
            env = os.environ | {"TMPDIR": str(PLACE / "tmp")}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env)

    def outcome(self, status: int, cpu_seconds: float) -> Outcome:
        self.process.returncode = os.waitstatus_to_exitcode(status)
        text = self.log.read_text(errors="replace")
        new = [path for path in (PLACE / "found").glob(f"{self.target.name}-*") if path.stat().st_mtime >= self.begun]
        assert self.process.returncode == 0 or new, f"{self.target.name} did not run:\n{text[-4000:]}"
        return Outcome(
            target=self.target.name,
            executions=_last(r"number_of_executed_units:\s*(\d+)", text),
            features=_last(r"ft: (\d+)", text),
            corpus=_last(r"corp: (\d+)", text),
            cpu_seconds=cpu_seconds,
            peak_mb=_last(r"peak_rss_mb:\s*(\d+)", text),
            findings=tuple(new) if self.process.returncode else (),
            log=self.log,
        )


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0
