"""Each example policy compiles to what is committed here: made by ``python -m tests.golden``, read by people."""

from pathlib import Path

import pytest

from tests.golden.make import FOLDER, POLICIES, made, there

EXAMPLES = sorted(POLICIES.glob("*.toml"))


def test_every_example_has_goldens_and_every_golden_an_example() -> None:
    assert EXAMPLES
    assert {path.stem for path in EXAMPLES} == {path.parent.name for path in FOLDER.glob("*/facts.json")}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_compiles_to_its_goldens(example: Path) -> None:
    assert made(example) == there(FOLDER / example.stem), "looked at it, and it is right? python -m tests.golden"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_element_and_rule_says_what_it_is_for(example: Path) -> None:
    ruleset = made(example)["ruleset.nft"]
    rules = [line for line in ruleset.splitlines() if line.startswith("\t\t") and " comment " not in line]
    heads = ("typeof ", "flags ", "size ", "timeout ", "type ", "counter", "comment ")
    assert [line for line in rules if not line.strip().startswith(heads)] == []
    assert f"{example.name}:1" in ruleset or f'comment "{example.name}' in ruleset
