"""Turns nft text into the kernel's one table of ours, and back into what is there. libnftables through its own binding.

A cgroup path is resolved when text is loaded: a slice that is missing is an error here, so slices are started first.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nftables

from hostmesh.apply.nft_sets import cgroup_elements
from hostmesh.errors import HostmeshError
from hostmesh.plan.elements import TableState, read_listing, read_sets
from hostmesh.plan.redirect import FAMILY, TABLE
from hostmesh.plan.redirect_sets import REPLIES
from hostmesh.plan.ruleset import Element
from hostmesh.plan.surroundings import Listing


class NftError(HostmeshError):
    """libnftables refused a transaction: nothing of it was done."""


class Nft:
    """The firewall's door, in the network namespace of the thread that makes it. cgroups: root of the cgroup2 tree."""

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._nft = nftables.Nftables()
        self._cgroups = cgroups

    def run(self, text: str) -> None:
        """One transaction: all of it or nothing. Raises `NftError` with nft's own words."""
        code, _, error = self._nft.cmd(text)
        if code:
            raise NftError(f"nft: {error.strip()}", "is another program changing `table inet hostmesh`?")

    def state(self) -> TableState | None:
        """Our table as it is there, without what packets put in (but counters); None when there is none."""
        listing = self._list(f"list table {FAMILY} {TABLE}", terse=True)
        state = read_listing(listing) if listing else None
        if state is None:
            return None
        paths = self._paths()
        sets = {}
        for name, types in state.types.items():
            if types[0] == "cgroupsv2":
                sets[name] = cgroup_elements(TABLE, name, paths)
            elif not name.startswith(REPLIES):
                sets.update(self._set(name))
        return replace(state, sets=sets)

    def counters(self, sets: tuple[str, ...]) -> dict[str, dict[int, int]]:
        """Packets by unit number (the mark), for each counting set; empty while the table is not there."""
        return {
            name: {int(element.key, 16): element.packets for element in elements}
            for wanted in sets
            for name, elements in self._set(wanted).items()
        }

    def others(self) -> Listing:
        """Everything of the tables that are not ours, as libnftables' JSON has it."""
        tables = (self._list("list tables") or {}).get("nftables", [])
        names = [(entry["table"]["family"], entry["table"]["name"]) for entry in tables if "table" in entry]
        listings = [self._list(f"list table {family} {name}", terse=True) for family, name in names if name != TABLE]
        return tuple(entry for listing in listings if listing for entry in listing["nftables"])

    def can_say(self, statement: str) -> bool:
        """Does the kernel take a rule with this statement? Tried in a table that is gone with the transaction."""
        table = f"{FAMILY} {TABLE}_probe"
        chain = f"{table} probe {{ type filter hook prerouting priority mangle; policy accept; }}"
        rule = f"{table} probe {statement}"
        text = f"add table {table}\nadd chain {chain}\nadd rule {rule}\ndelete table {table}\n"
        code, _, _ = self._nft.cmd(text)
        return bool(code == 0)

    def _set(self, name: str) -> dict[str, tuple[Element, ...]]:
        listing = self._list(f"list set {FAMILY} {TABLE} {name}")
        return read_sets(listing) if listing else {}

    def _paths(self) -> dict[int, str]:
        """The cgroups of level 2 under ``mesh.slice``, by id."""
        top = self._cgroups / "mesh.slice"
        if not top.is_dir():
            return {}
        return {entry.stat().st_ino: f"mesh.slice/{entry.name}" for entry in top.iterdir() if entry.is_dir()}

    def _list(self, command: str, terse: bool = False) -> dict[str, Any] | None:
        self._nft.set_json_output(True)
        self._nft.set_terse_output(terse)
        try:
            code, output, error = self._nft.cmd(command)
        finally:
            self._nft.set_json_output(False)
            self._nft.set_terse_output(False)
        if code:
            if "No such file or directory" in error:
                return None
            raise NftError(f"nft: {error.strip()}")
        return dict(json.loads(output)) if output else {}
