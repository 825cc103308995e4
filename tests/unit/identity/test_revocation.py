"""What is taken back: entries as a person names them, whom they mean, when they end. Rust reads the same vectors."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hostmesh.identity import revocation
from hostmesh.identity.revocation import Kind
from hostmesh.names import BadName, SpiffeId
from hostmesh.wire.snapshot import Revoked

VECTORS = Path(__file__).parents[2] / "vectors" / "revoked.json"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WEB = SpiffeId.parse("spiffe://mesh.test/unit/web")
LIVES = (timedelta(hours=24), timedelta(days=14))


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text())["cases"], ids=lambda case: str(case["name"]))
def test_whom_an_entry_means(case: dict[str, Any]) -> None:
    entries = [Revoked(**entry) for entry in case["entries"]]
    said = case["certificate"]
    found = revocation.of(
        entries, SpiffeId.parse(said["spiffe_id"]), said["hosts"], int(said["serial"], 16), said["not_before"]
    )
    assert (f"{found.kind} {found.name}" if found else None) == case["expect"]


@pytest.mark.parametrize(
    ("kind", "typed", "name"),
    [
        (Kind.UNIT, "web", "spiffe://mesh.test/unit/web"),
        (Kind.UNIT, "postgresql@15-main.service", "spiffe://mesh.test/unit/postgresql/15-main"),
        (Kind.HOST, "DB-01.example.org", "db-01.example.org"),
        (Kind.SERIAL, "00:4D:02", "4d02"),
    ],
)
def test_an_entry_as_a_person_names_it(kind: Kind, typed: str, name: str) -> None:
    assert revocation.entry(kind, typed, "mesh.test", "stolen") == Revoked(kind.value, name, 0, "stolen")


@pytest.mark.parametrize(
    ("kind", "typed", "reason"),
    [
        (Kind.UNIT, "a b", ""),
        (Kind.HOST, "-h", ""),
        (Kind.SERIAL, "xyz", ""),
        (Kind.SERIAL, "0", ""),
        (Kind.UNIT, "web", "two\nlines"),
        (Kind.UNIT, "web", "x" * 201),
    ],
)
def test_what_cannot_be_one_is_refused(kind: Kind, typed: str, reason: str) -> None:
    with pytest.raises(BadName):
        revocation.entry(kind, typed, "mesh.test", reason)


def test_a_persons_word_stands_and_a_removals_ends_with_its_certificates() -> None:
    persons = revocation.entry(Kind.HOST, "h1", "mesh.test")
    removal = revocation.removal("H1", NOW)
    assert revocation.ends(persons, NOW, LIVES) is None
    ends = revocation.ends(removal, NOW, LIVES)
    assert ends is not None
    assert ends >= NOW + max(LIVES)
    assert revocation.standing([persons], WEB, ("h1",)) == persons
    assert revocation.standing([removal], WEB, ("h1",)) is None, "it may join again"


def test_what_is_signed_after_a_removal_counts() -> None:
    removal = revocation.removal("h1", NOW)
    begins = revocation.not_before([removal], ("h1",), NOW) - timedelta(minutes=5)
    assert revocation.of([removal], WEB, ("h1",), 7, begins.timestamp()) is None
    assert revocation.of([removal], WEB, ("h1",), 7, (NOW - timedelta(minutes=5)).timestamp()) == removal
    assert revocation.not_before([removal], ("h2",), NOW) == NOW


def test_news_are_sentences() -> None:
    one = revocation.entry(Kind.UNIT, "web", "mesh.test", "key was printed")
    assert revocation.news([], [one]) == ["revoked: unit spiffe://mesh.test/unit/web (key was printed)"]
    assert revocation.news([one], []) == ["no longer revoked: unit spiffe://mesh.test/unit/web (key was printed)"]
