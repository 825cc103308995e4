"""Turns what people wrote on this host into values: its settings and its policy files, as agent and verbs read them."""

import os
from collections.abc import Iterable
from pathlib import Path

from hostmesh.errors import Diagnostic, HostmeshError, Place, PolicyError
from hostmesh.policy.findings import Code
from hostmesh.policy.hostfile import load_settings
from hostmesh.policy.settings import Settings

SUFFIX = ".toml"
_EMPTY = "is the disk full? Write it again; a policy that says nothing has a comment that says so"


def settings(file: Path) -> Settings:
    """The settings in the file; the usual ones where there is none. Raises PolicyError with all findings."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise HostmeshError(f"{file} cannot be read: {error}") from error
    return load_settings(str(file), text)


def host_name(known: Settings) -> str:
    """The name under which this host is known to its controller: set, or the machine's own up to the first dot."""
    return known.host or os.uname().nodename.partition(".")[0].lower()


def policy_texts(paths: Iterable[Path]) -> dict[str, str]:
    """Path to text, for files and for the policies in folders. What cannot be read is told all at once: PolicyError."""
    texts: dict[str, str] = {}
    bad: list[Diagnostic] = []
    for path in paths:
        folder = path.is_dir()
        for file in _inside(path) if folder else [path]:
            try:
                texts[str(file)] = text = file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                if folder and isinstance(error, FileNotFoundError):
                    continue  # gone between listing and reading: not there
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8, as TOML is"
                bad.append(Diagnostic(Code.UNREADABLE, Place(str(file)), f"cannot be read: {reason}"))
            else:
                if not text:  # what `>` and cp(1) leave on a full disk; in force it would take the unit's ports away
                    bad.append(Diagnostic(Code.UNREADABLE, Place(str(file)), "the file is empty: cut off?", _EMPTY))
    if bad:
        raise PolicyError(tuple(bad))
    return texts


def _inside(folder: Path) -> list[Path]:
    """The policies of a folder. A leading dot: an editor's, or the temporary of whoever writes and renames."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
