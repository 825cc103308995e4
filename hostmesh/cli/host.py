"""Turns this machine into what verbs need to know of it: its settings, its policy files, who is asking."""

import os
from pathlib import Path

from hostmesh.errors import Diagnostic, HostmeshError, Place, PolicyError
from hostmesh.policy.findings import Code
from hostmesh.policy.hostfile import PLACE, load_settings
from hostmesh.policy.settings import Settings

SUFFIX = ".toml"


class NotRoot(HostmeshError):
    """The verb changes the host."""


def settings() -> Settings:
    """The host's settings, the defaults while there is no file; HOSTMESH_SETTINGS names another file."""
    file = Path(os.environ.get("HOSTMESH_SETTINGS", PLACE))
    try:
        text = file.read_text()
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise HostmeshError(f"{file} cannot be read: {error}") from error
    return load_settings(str(file), text)


def must_be_root(verb: str) -> None:
    """Say so before anything is done."""
    if os.geteuid() != 0:
        raise NotRoot(f"{verb} changes this host and needs root", f"sudo hostmesh {verb} …")


def host_name(known: Settings) -> str:
    """The name under which this host is known to its controller: set, or the machine's own up to the first dot."""
    return known.host or os.uname().nodename.partition(".")[0].lower()


def policy_path(known: Settings, unit: str) -> Path:
    """Where the policy of a unit stands."""
    return Path(known.paths.policies) / f"{unit}{SUFFIX}"


def policy_texts(paths: list[Path]) -> dict[str, str]:
    """Path to text, for files and for the policies in folders. What cannot be read is told all at once."""
    texts: dict[str, str] = {}
    bad: list[Diagnostic] = []
    for path in paths:
        inside = sorted(p for p in path.glob(f"*{SUFFIX}") if not p.name.startswith(".")) if path.is_dir() else [path]
        for file in inside:
            try:
                texts[str(file)] = file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                bad.append(Diagnostic(Code.UNREADABLE, Place(str(file)), f"cannot be read: {reason}"))
    if bad:
        raise PolicyError(tuple(bad))
    return texts
