"""The policy folder: all of it or the one before."""

from pathlib import Path

import pytest

from hostmesh.agent.policies import PolicyFolder
from hostmesh.errors import PolicyError

GOOD = '[service]\n[service.ports]\n80 = "http"\n'


def units(folder: PolicyFolder) -> list[str]:
    return [policy.unit.full for policy in folder.policies]


def test_a_bad_file_leaves_all_as_it_was_until_it_is_mended(tmp_path: Path) -> None:
    folder = PolicyFolder(tmp_path)
    (tmp_path / "a.service.toml").write_text(GOOD)
    assert folder.refresh()
    (tmp_path / "b.service.toml").write_text(GOOD.replace("80", "81"))
    (tmp_path / "a.service.toml").write_text("[servce]\n")
    assert folder.refresh()
    assert units(folder) == ["a.service"]
    assert [(f.place.line, f.code) for f in folder.findings] == [(1, "unknown-key")]
    (tmp_path / "a.service.toml").write_text(GOOD)
    assert folder.refresh()
    assert units(folder) == ["a.service", "b.service"]
    assert not folder.findings


def test_findings_stay_while_the_bad_file_does(tmp_path: Path) -> None:
    folder = PolicyFolder(tmp_path)
    (tmp_path / "a.service.toml").write_text("x = 1\n")
    assert folder.refresh()
    assert not folder.refresh(), "nothing new to tell"
    assert folder.findings


def test_the_same_files_are_no_news(tmp_path: Path) -> None:
    (tmp_path / "a.service.toml").write_text(GOOD)
    folder = PolicyFolder(tmp_path)
    assert folder.refresh()
    assert not folder.refresh()


def test_an_unreadable_file_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.service.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "b.service.toml").mkdir()
    folder = PolicyFolder(tmp_path)
    folder.refresh()
    assert [Path(f.place.file).name for f in folder.findings] == ["a.service.toml", "b.service.toml"]


def test_a_file_that_can_be_read_again_is_well_again(tmp_path: Path) -> None:
    (tmp_path / "a.service.toml").write_text(GOOD)
    folder = PolicyFolder(tmp_path)
    folder.refresh()
    (tmp_path / "b.service.toml").mkdir()
    assert folder.refresh()
    assert folder.findings
    (tmp_path / "b.service.toml").rmdir()
    assert folder.refresh()
    assert not folder.findings


def test_temporaries_are_not_policies_and_no_folder_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / ".a.service.toml").write_text("half a fi")
    folder = PolicyFolder(tmp_path)
    folder.refresh()
    assert units(folder) == []
    nowhere = PolicyFolder(tmp_path / "none")
    nowhere.refresh()
    assert nowhere.policies == () == nowhere.findings


def test_changes_are_laid_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.service.toml").write_text(GOOD)
    folder = PolicyFolder(tmp_path)
    names = [p.unit.full for p in folder.with_changes({"b.service.toml": GOOD, "a.service.toml": ""})]
    assert names == ["b.service"]
    with pytest.raises(PolicyError):
        folder.with_changes({"b.service.toml": "x = 1"})
    assert list(tmp_path.iterdir()) == [tmp_path / "a.service.toml"]
