"""Turns text into files, whole or not at all: written beside, made durable, then renamed over (rename(2))."""

import errno
import os
import secrets
from pathlib import Path

from hostmesh.errors import HostmeshError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: df {folder} shows it; free some space",
    errno.EDQUOT: "the quota is used up: free some space in {folder}",
    errno.EROFS: "the disk is read-only: dmesg tells why; mount -o remount,rw, or find what holds {folder}",
    errno.EMFILE: "no descriptors are left: raise LimitNOFILE=",
}


class NotWritten(HostmeshError):
    """A file that the disk did not take: the one of before is as it was."""

    def __init__(self, path: Path, error: OSError) -> None:
        remedy = _REMEDIES.get(error.errno or 0, "").format(folder=path.parent)
        super().__init__(f"{path} cannot be written: {error.strerror}", remedy)


class Files:
    """Small files of ours. root: what absolute paths are under, for a host's tree that is mounted elsewhere."""

    def __init__(self, root: Path = Path("/"), mode: int = 0o644) -> None:
        self._root = root
        self._mode = mode

    def read(self, path: str) -> str | None:
        """The text, or None when there is no such file. Bytes that are no text become U+FFFD, which nobody writes."""
        try:
            return self._at(path).read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, text: str) -> None:
        """Replace the whole file; its folder is made if missing. Durable when this returns. Raises `NotWritten`."""
        target = self._at(path)
        try:
            self._replace(target, text)
        except OSError as error:
            raise NotWritten(target, error) from error

    def _replace(self, target: Path, text: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            _write(beside, text.encode(), self._mode)
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync(target.parent)

    def remove(self, path: str) -> None:
        """Remove the file, and its folder if that is empty then and a unit's drop-in folder (``*.d``)."""
        target = self._at(path)
        target.unlink(missing_ok=True)
        folder = target.parent
        if folder.suffix == ".d" and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
        if folder.is_dir():
            sync(folder)

    def find(self, folder: str, pattern: str) -> dict[str, str]:
        """Text by path of the files under ``folder`` that match the glob."""
        base = self._at(folder)
        found = sorted(base.glob(pattern))
        return {f"{folder}/{path.relative_to(base)}": path.read_text(errors="replace") for path in found}

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")


def create(path: Path, data: bytes, mode: int) -> Path:
    """Write a file that must not be there yet; durable when this returns. Raises `FileExistsError`."""
    _write(path, data, mode)
    sync(path.parent)
    return path


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file; its bytes are durable when this returns, its name once its folder is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def sync(folder: Path) -> None:
    """Make what was done in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
