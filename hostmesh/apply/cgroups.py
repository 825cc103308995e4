"""Turns cgroup paths into ids, and tells whether anybody lives there (cgroups(7)). An id is the folder's inode."""

import os
from pathlib import Path


class Cgroups:
    """The cgroup2 tree of this host. Paths count from its root, without a leading slash."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._root = root

    def id(self, path: str) -> int:
        """The cgroup's id; 0 when it is not there."""
        try:
            return (self._root / path.lstrip("/")).stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def ids(self, path: str) -> frozenset[int]:
        """The ids of a cgroup and all below it; a socket's is that of the one in which it was born."""
        top = self._root / path.lstrip("/")
        # walk(), unlike rglob(), goes on when a cgroup vanishes under its feet.
        found = {self.id(str(Path(folder).relative_to(self._root))) for folder, _, _ in os.walk(top)}
        return frozenset(found - {0})

    def populated(self, path: str) -> bool:
        """Does a process live in it or below?"""
        try:
            events = (self._root / path.lstrip("/") / "cgroup.events").read_text()
        except OSError:  # it is gone, or going: ENODEV
            return False
        return "populated 1" in events

    def slices(self) -> frozenset[str]:
        """The names of the slices right under ``mesh.slice``."""
        top = self._root / "mesh.slice"
        if not top.is_dir():
            return frozenset()
        return frozenset(folder.name for folder in top.iterdir() if folder.is_dir() and folder.name.endswith(".slice"))
