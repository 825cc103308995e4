"""Turns the host's settings into the pinned guard, before any meshed unit can start: `hostmesh-guard.service`.

It runs once at boot, first of all, so it reads one number of one file and imports only the standard library.
"""

import sys
import tomllib
from pathlib import Path

from hostmesh.apply.bpf import Bpf
from hostmesh.errors import HostmeshError
from hostmesh.plan.guard import guard_program
from hostmesh.policy.settings import Marks, Paths

SETTINGS = Path("/etc/hostmesh/hostmesh.toml")


def main() -> int:
    """Pin the guard; 0 when it is there. Any failure keeps `mesh.slice`, and so every meshed unit, from starting."""
    try:
        allowed, folder = _settings(SETTINGS)
        pinned = Bpf(folder).pin_guard(guard_program(allowed))
    except (HostmeshError, OSError, ValueError) as error:
        print(f"<3>hostmesh-guard: {error}", file=sys.stderr)
        return 1
    print(f"guard pinned: {', '.join(pinned)}")
    return 0


def _settings(path: Path) -> tuple[int, Path]:
    """The mark bit and the folder, from the file if it says so; a file that isn't there means what is usual."""
    try:
        data = tomllib.loads(path.read_text()) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    marks, paths = data.get("marks", {}), data.get("paths", {})
    if not (isinstance(marks, dict) and isinstance(paths, dict)):
        raise ValueError(f"{path}: marks and paths are tables: write [marks] or [paths]")
    allowed, folder = marks.get("allowed", Marks().allowed), paths.get("bpffs", Paths().bpffs)
    if not isinstance(allowed, int) or not 0 < allowed < 1 << 31:
        raise ValueError(f"{path}: marks.allowed must be one bit below bit 31")
    return allowed, Path(str(folder))


if __name__ == "__main__":
    sys.exit(main())
