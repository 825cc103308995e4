"""What people wrote, as agent and verbs read it: the same files, the same words for what cannot be read."""

import os
from pathlib import Path

import pytest

from hostmesh.errors import HostmeshError, PolicyError
from hostmesh.observe import written
from hostmesh.policy.settings import Settings


def test_a_folder_gives_its_policies_and_no_temporaries(tmp_path: Path) -> None:
    for name in ("b.service.toml", "a.service.toml", ".c.service.toml", "d.service.toml.disabled"):
        (tmp_path / name).write_text(name)
    assert list(written.policy_texts([tmp_path]).values()) == ["a.service.toml", "b.service.toml"]


def test_what_cannot_be_read_is_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.service.toml").write_bytes(b"\xff")
    (tmp_path / "b.service.toml").mkdir()
    (tmp_path / "c.service.toml").touch()
    with pytest.raises(PolicyError) as caught:
        written.policy_texts([tmp_path, tmp_path / "none.toml"])
    told = [(Path(found.place.file).name, found.message) for found in caught.value.diagnostics]
    assert told == [
        ("a.service.toml", "cannot be read: not UTF-8, as TOML is"),
        ("b.service.toml", "cannot be read: Is a directory"),
        ("c.service.toml", "the file is empty: cut off?"),
        ("none.toml", "cannot be read: No such file or directory"),
    ]


def test_a_policy_that_goes_while_the_folder_is_read_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.service.toml").symlink_to(tmp_path / "gone")
    assert written.policy_texts([tmp_path]) == {}


def test_no_settings_are_the_usual_ones_and_a_folder_is_none(tmp_path: Path) -> None:
    assert written.settings(tmp_path / "none.toml") == Settings()
    with pytest.raises(HostmeshError, match="cannot be read"):
        written.settings(tmp_path)


def test_a_host_without_a_set_name_has_its_own_up_to_the_first_dot() -> None:
    assert written.host_name(Settings(host="db1")) == "db1"
    assert written.host_name(Settings()) == os.uname().nodename.partition(".")[0].lower()
