"""Turns inotify(7) events of one folder into wake-ups: a file was written, moved in or out, or removed."""

import ctypes
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

_EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _IGNORED, _OVERFLOW, _ONLYDIR = 0x400, 0x800, 0x8000, 0x4000, 0x01000000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_libc = ctypes.CDLL(None, use_errno=True)


def parse(data: bytes) -> Iterator[tuple[int, int, str]]:
    """The events of one read: (watch, mask, file name; empty for the folder itself)."""
    at = 0
    while at + _EVENT.size <= len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield watch, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length


class Seen(IntEnum):
    """What is worth a look. gone: perhaps only for a moment, many tools remove a file and write it anew."""

    NOTHING = 0
    GONE = 1
    WRITTEN = 2


class FolderWatch:
    """Follows the ``suffix`` files of a folder; the folder may come and go (`attach` takes it up again)."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder, self._suffix = folder, suffix
        self.attached = False  # whether the folder is watched now
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def fileno(self) -> int:
        """For an event loop: readable when there is something to `read`."""
        return self._fd

    def attach(self) -> bool:
        """Watch the folder if it isn't watched yet; False while there is none."""
        if not self.attached and self._folder.is_dir():
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(self._folder), _MASK), str(self._folder))
            self.attached = True
        return self.attached

    def read(self) -> Seen:
        """Take what is there, without waiting: did anything happen that is worth a look?"""
        worth = Seen.NOTHING
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return worth
            for watch, mask, name in parse(data):
                worth = max(worth, self._matters(watch, mask, name))

    def _matters(self, watch: int, mask: int, name: str) -> Seen:
        if mask & _IGNORED:
            self.attached = False
        if mask & _MOVE_SELF:
            # The watch would follow the folder to its new name. IN_IGNORED follows, and `attach` begins anew.
            _checked(_libc.inotify_rm_watch(self._fd, watch), str(self._folder))
        if mask & (_IGNORED | _OVERFLOW | _DELETE_SELF | _MOVE_SELF):
            return Seen.GONE
        if not name.endswith(self._suffix):
            return Seen.NOTHING
        if mask & (_DELETE | _MOVED_FROM):
            return Seen.GONE
        # A file is complete when it is closed; a symbolic link is when it is made.
        complete = not mask & _CREATE or (self._folder / name).is_symlink()
        return Seen.WRITTEN if complete else Seen.NOTHING

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
