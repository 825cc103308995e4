"""Turns the host's settings into the pinned guard, before any meshed unit can start: `hostmesh-guard.service`.

It runs once at boot, first of all, so it reads three marks of one file and imports only the standard library.
"""

import sys
import tomllib
from pathlib import Path

from hostmesh.apply.bpf import Bpf
from hostmesh.errors import HostmeshError
from hostmesh.plan.guard import guard_program
from hostmesh.policy.settings import Marks, Paths

SETTINGS = Path("/etc/hostmesh/hostmesh.toml")
_BITS = ("allowed", "outbound", "inbound")


def main() -> int:
    """Pin the guard; 0 when it is there. Any failure keeps `mesh.slice`, and so every meshed unit, from starting."""
    try:
        marks, folder = _settings(SETTINGS)
        pinned = Bpf(folder).pin_guard(guard_program(marks.allowed, marks.outbound | marks.inbound))
    except (HostmeshError, OSError, ValueError) as error:
        print(f"<3>hostmesh-guard: {error}", file=sys.stderr)
        return 1
    print(f"guard pinned: {', '.join(pinned)}")
    return 0


def _settings(path: Path) -> tuple[Marks, Path]:
    """The guard's marks and the folder, from the file if it says so; a file that isn't there means what is usual."""
    try:
        data = tomllib.loads(path.read_text()) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    said, paths, usual = data.get("marks", {}), data.get("paths", {}), Marks()
    if not (isinstance(said, dict) and isinstance(paths, dict)):
        raise ValueError(f"{path}: marks and paths are tables: write [marks] or [paths]")
    marks = Marks(**{name: _bit(path, name, said.get(name, getattr(usual, name))) for name in _BITS})
    return marks, Path(str(paths.get("bpffs", Paths().bpffs)))


def _bit(path: Path, name: str, value: object) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 31 or value.bit_count() != 1:
        raise ValueError(f"{path}: marks.{name} must be one bit below bit 31")
    return value


if __name__ == "__main__":
    sys.exit(main())
