"""The generated page is current, and tells every key that can be written."""

from pathlib import Path

from hostmesh.policy.reference import reference
from hostmesh.policy.schema import TABLES
from hostmesh.policy.validate import load

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    page = (ROOT / "docs/policy.md").read_text()
    assert page == reference(), "run: python -m hostmesh.cli.reference > docs/policy.md"


def test_every_key_is_told() -> None:
    page = reference()
    for table in TABLES:
        for key in table.keys:
            assert f"| `{key.name}` |" in page


def test_the_examples_pass_together_and_say_their_idea_first() -> None:
    files = {path.name: path.read_text() for path in sorted((ROOT / "policies").glob("*.toml"))}
    assert len(load(files)) == len(files) >= 8
    assert all(text.startswith("# ") and len(text.splitlines()) <= 20 for text in files.values())
