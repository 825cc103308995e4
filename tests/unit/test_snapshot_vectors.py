"""The sample snapshots, which the data plane's tests read too: not a field more or less than the contract says."""

import json
from pathlib import Path

import msgspec
import pytest

from hostmesh.wire.snapshot import SNAPSHOT_VERSION, Snapshot

SAMPLES = sorted((Path(__file__).parents[1] / "vectors" / "snapshot").glob("*.json"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_sample_reads_and_writes_back(sample: Path) -> None:
    text = sample.read_bytes()
    snapshot = msgspec.json.decode(text, type=Snapshot)
    assert snapshot.version == SNAPSHOT_VERSION
    assert json.loads(msgspec.json.encode(snapshot)) == json.loads(text)


def test_there_are_samples() -> None:
    assert [sample.stem for sample in SAMPLES] == ["h1", "h2"]
