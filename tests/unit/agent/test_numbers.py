"""Unit numbers: stable within a boot, never used twice in it, also across restarts of the agent."""

from pathlib import Path

import pytest

from hostmesh.agent.numbers import LAST, Numbers, NumbersUsedUp
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName

WEB, DB, API = (UnitName(f"{name}.service") for name in ("web", "db", "api"))


def test_numbers_stay_and_are_not_given_again(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    assert Numbers(path, "boot1").of([WEB, DB]) == {WEB: 1, DB: 2}
    later = Numbers(path, "boot1")
    assert later.of([DB]) == {DB: 2}
    assert later.of([API]) == {API: 3}
    assert later.known() == {WEB: 1, DB: 2, API: 3}
    assert Numbers(path, "boot1").of([WEB]) == {WEB: 1}


def test_another_boot_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    Numbers(path, "boot1").of([WEB, DB])
    assert Numbers(path, "boot2").of([DB]) == {DB: 1}


def test_a_preview_takes_nothing(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "numbers.json", "boot1")
    assert numbers.preview([WEB, DB]) == {WEB: 1, DB: 2}
    assert numbers.of([DB]) == {DB: 1}


def test_the_last_number_and_no_more(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "numbers.json", "boot1")
    units = [UnitName(f"u{i}.service") for i in range(LAST)]
    assert numbers.of(units)[units[-1]] == LAST == 4095
    with pytest.raises(NumbersUsedUp, match="reboot"):
        numbers.of([WEB])
    assert numbers.of(units[:1]) == {units[0]: 1}


def test_a_broken_file_is_no_reason_to_give_numbers_twice(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text('{"boot": "boot1", "ne')
    with pytest.raises(HostmeshError, match="cannot be read"):
        Numbers(path, "boot1")
