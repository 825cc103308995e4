"""Turns keys and values into /proc/sys, and remembers what was there before, so that removal restores it."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from hostmesh.errors import HostmeshError
from hostmesh.wire.codec import decode


class SysctlError(HostmeshError):
    """A key that this kernel doesn't have, or a value that it doesn't take."""


class Sysctls:
    """load and save: the text that outlives the process, None while there is none (`sysctls.json` of the state)."""

    def __init__(
        self, load: Callable[[], str | None], save: Callable[[str], None], root: Path = Path("/proc/sys")
    ) -> None:
        self._load = load
        self._save = save
        self._root = root

    def get(self, key: str) -> str:
        """The value in force. Raises `SysctlError`."""
        try:
            return self._path(key).read_text().strip()
        except OSError as error:
            raise SysctlError(f"sysctl {key}: {error.strerror}", "hostmesh needs Linux 6.1 or later") from error

    def set(self, key: str, value: str) -> None:
        """Set, after what was there before is safely remembered."""
        before = self.before()
        if key not in before:
            self._save(json.dumps({**before, key: self.get(key)}, indent=1, sort_keys=True) + "\n")
        self._write(key, value)

    def restore(self, key: str) -> None:
        """Put back what was there before, then forget it."""
        before = self.before()
        if key in before:
            self._write(key, before.pop(key))
            self._save(json.dumps(before, indent=1, sort_keys=True) + "\n")

    def before(self) -> dict[str, str]:
        """The values that were there, of the keys that hostmesh set."""
        text = self._load()
        try:
            return decode(text.encode(), dict[str, str]) if text else {}
        except msgspec.DecodeError as error:
            hint = "remove it; hostmesh uninstall then leaves sysctls as they are"
            raise SysctlError(f"what sysctls were before (sysctls.json) cannot be read: {error}", hint) from error

    def _write(self, key: str, value: str) -> None:
        try:
            self._path(key).write_text(value)
        except OSError as error:
            raise SysctlError(f"sysctl {key}={value}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        return self._root / key.replace(".", "/")
