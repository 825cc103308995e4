"""Turns Go modules into a real OpenTelemetry Collector that a test host can run, and what it got into spans.

Built once from ``tests/collector`` (a minute, most of it downloads) and kept beside the lab's layers.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.host import Host
from tests.lab.programs import program

SOURCE = Path(__file__).parents[1] / "collector"
GRPC, HTTP = 4317, 4318
UNIT = "otelcol.service"
_PROGRAM, _CONFIG, _FILE = "/usr/local/bin/otelcol", "/etc/otelcol.yaml", "/var/lib/otelcol/traces.json"
_SETTINGS = f"""
receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: "0.0.0.0:{GRPC}" }}
      http: {{ endpoint: "0.0.0.0:{HTTP}" }}
exporters:
  file: {{ path: "{_FILE}", append: true, flush_interval: 50ms }}
service:
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [file] }}
"""


def binary() -> Path:
    """The collector's program."""
    return program(SOURCE, "hostmesh/tests/collector")


@dataclass(frozen=True)
class Span:
    """One span as the collector got it. ``parent`` is empty for a root; ``unit`` and ``service`` are its resource's."""

    unit: str
    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    begun: int
    ended: int


class Collector:
    """The collector on a host, and what it wrote."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it for the length of a ``with``; what it wrote stays."""
        with self.host.unit([_PROGRAM, "--config", _CONFIG], unit=UNIT):
            for port in (GRPC, HTTP):
                self.host.wait_port(port)
            yield

    def install(self) -> None:
        """Put program and settings in place."""
        place = self.host.root / _PROGRAM.lstrip("/")
        shutil.copyfile(binary(), place)
        place.chmod(0o755)
        self.host.write(_CONFIG, _SETTINGS)
        self.host.exec(["mkdir", "-p", str(Path(_FILE).parent)]).must()

    def forget(self) -> None:
        """Throw away what it wrote."""
        (self.host.root / _FILE.lstrip("/")).unlink(missing_ok=True)

    def spans(self, trace: str = "") -> list[Span]:
        """All that came so far; of one trace (32 digits), if given."""
        file = self.host.root / _FILE.lstrip("/")
        lines = file.read_text().splitlines() if file.exists() else []
        found = [span for line in lines for span in _spans(json.loads(line))]
        return [span for span in found if trace in ("", span.trace)]


def _spans(batch: dict[str, Any]) -> Iterator[Span]:
    for resource in batch["resourceSpans"]:
        about = _values(resource["resource"]["attributes"])
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            yield Span(
                unit=about["hostmesh.unit"],
                service=about["service.name"],
                name=span["name"],
                kind=span["kind"],
                trace=span["traceId"],
                id=span["spanId"],
                parent=span.get("parentSpanId", ""),
                attributes=_values(span.get("attributes", [])),
                failed=span.get("status", {}).get("code") == 2,
                begun=int(span["startTimeUnixNano"]),
                ended=int(span["endTimeUnixNano"]),
            )


def _values(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        pair["key"]: int(pair["value"]["intValue"]) if "intValue" in pair["value"] else pair["value"]["stringValue"]
        for pair in pairs
    }
