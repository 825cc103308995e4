"""Turns this machine into what verbs need to know of it: its settings, its policy files, who is asking."""

import os
from pathlib import Path

from hostmesh.errors import HostmeshError
from hostmesh.observe import written
from hostmesh.observe.written import SUFFIX, host_name, policy_texts
from hostmesh.policy.hostfile import PLACE
from hostmesh.policy.settings import Settings

__all__ = ["SUFFIX", "host_name", "must_be_root", "policy_path", "policy_texts", "settings"]


class NotRoot(HostmeshError):
    """The verb changes the host."""


def settings() -> Settings:
    """The host's settings, the defaults while there is no file; HOSTMESH_SETTINGS names another file."""
    return written.settings(Path(os.environ.get("HOSTMESH_SETTINGS", PLACE)))


def must_be_root(verb: str) -> None:
    """Say so before anything is done."""
    if os.geteuid() != 0:
        raise NotRoot(f"{verb} changes this host and needs root", f"sudo hostmesh {verb} …")


def policy_path(known: Settings, unit: str) -> Path:
    """Where the policy of a unit stands."""
    return Path(known.paths.policies) / f"{unit}{SUFFIX}"
