"""What the agent finds of the collector of traces: addresses of its name, certificates; told when it can't."""

import asyncio
import base64
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.agent.collector import CollectorWatch
from hostmesh.agent.reports import Reports
from hostmesh.identity.authority import make_root
from hostmesh.plan.facts import CollectorFacts
from hostmesh.policy.settings import Traces


class Said(Reports):
    """Reports that are kept: what, and why (empty: well)."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def state(self, what: str, why: str) -> None:
        self.states[what] = why


def looked(traces: Traces, said: Said | None = None) -> CollectorFacts:
    async def look() -> CollectorFacts:
        watch = CollectorWatch(traces, said or Said(), lambda: None)
        task = asyncio.create_task(watch.run())
        await asyncio.wait_for(watch.first.wait(), 10)
        task.cancel()
        return watch.known

    return asyncio.run(look())


def test_without_a_collector_nothing_is_looked_for() -> None:
    assert looked(Traces()) == CollectorFacts()


def test_an_address_is_what_it_is_and_a_name_is_looked_up() -> None:
    assert looked(Traces("http://[2001:2::1]:4317")).addresses == ("2001:2::1",)
    assert "127.0.0.1" in looked(Traces("http://localhost:4317")).addresses


def test_a_name_that_leads_nowhere_is_told() -> None:
    said = Said()
    assert looked(Traces("http://collector.invalid:4317"), said) == CollectorFacts()
    assert said.states["the collector of traces is not found"].startswith("collector.invalid: ")


def test_its_certificates_are_read_or_it_is_told_why_not(tmp_path: Path) -> None:
    root = make_root("mesh.test", ec.generate_private_key(ec.SECP256R1()), now=datetime.now(UTC), serial=1)
    file, said = tmp_path / "ca.pem", Said()
    traces = Traces("https://127.0.0.1", ca=str(file))
    assert looked(traces, said).ca == () and str(file) in said.states["[traces] ca is not read"]
    file.write_bytes(root.public_bytes(Encoding.PEM))
    assert looked(traces, said).ca == (base64.b64encode(root.public_bytes(Encoding.DER)).decode(),)
    assert said.states["[traces] ca is not read"] == ""
