"""Which file events are worth a look, with the kernel's own inotify."""

import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostmesh.observe.folder import FolderWatch, Seen


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    return folder


@pytest.fixture
def watch(policies: Path) -> Iterator[FolderWatch]:
    watch = FolderWatch(policies, ".toml")
    assert watch.attach()
    yield watch
    watch.close()


def told(watch: FolderWatch) -> Seen:
    readable, _, _ = select.select([watch], [], [], 0)  # inotify queues its events before the system call returns
    return watch.read() if readable else Seen.NOTHING


def test_a_file_counts_when_it_is_complete(watch: FolderWatch, policies: Path) -> None:
    with (policies / "web.service.toml").open("w") as file:
        file.write("[service]\n")
        file.flush()
        assert not told(watch)
    assert told(watch)
    assert not told(watch)


def test_moved_in_moved_out_removed(watch: FolderWatch, policies: Path) -> None:
    (policies / ".new").write_text("x")
    assert not told(watch)
    (policies / ".new").rename(policies / "web.service.toml")
    assert told(watch) is Seen.WRITTEN
    (policies / "web.service.toml").rename(policies.parent / "away.toml")
    assert told(watch) is Seen.GONE
    (policies.parent / "away.toml").rename(policies / "web.service.toml")
    assert told(watch) is Seen.WRITTEN
    (policies / "web.service.toml").unlink()
    assert told(watch) is Seen.GONE


def test_a_symbolic_link_counts_at_once(watch: FolderWatch, policies: Path) -> None:
    (policies / "web.service.toml").symlink_to("/etc/hostname")
    assert told(watch)


def test_other_files_do_not_count(watch: FolderWatch, policies: Path) -> None:
    (policies / "README").write_text("x")
    (policies / "web.service.toml~").write_text("x")
    assert not told(watch)


@pytest.mark.parametrize("moved", [False, True])
def test_the_folder_may_be_replaced(watch: FolderWatch, policies: Path, moved: bool) -> None:
    if moved:
        policies.rename(policies.parent / "old")
    else:
        policies.rmdir()
    assert told(watch)
    assert not watch.attach()
    policies.mkdir()
    assert watch.attach()
    (policies / "web.service.toml").write_text("x")
    assert told(watch)
    if moved:
        (policies.parent / "old" / "web.service.toml").write_text("x")
        assert not told(watch)
