"""Turns nft text into the kernel's one table of ours, and back into what is there. libnftables through its own binding.

A cgroup path is resolved when text is loaded: a slice that is missing is an error here, so slices are started first.
"""

import json
from typing import Any

import nftables

from hostmesh.errors import HostmeshError
from hostmesh.plan.elements import TableState, read_listing
from hostmesh.plan.redirect import FAMILY, TABLE


class NftError(HostmeshError):
    """libnftables refused a transaction: nothing of it was done."""


class Nft:
    """The firewall's door, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._nft = nftables.Nftables()
        self._nft.set_json_output(False)

    def run(self, text: str) -> None:
        """One transaction: all of it or nothing. Raises `NftError` with nft's own words."""
        code, _, error = self._nft.cmd(text)
        if code:
            raise NftError(f"nft: {error.strip()}", "is another program changing `table inet hostmesh`?")

    def state(self) -> TableState | None:
        """Our table as the kernel lists it; None when it is not there."""
        listing = self._list(f"list table {FAMILY} {TABLE}")
        return read_listing(listing) if listing else None

    def counters(self, sets: tuple[str, ...]) -> dict[str, dict[int, int]]:
        """Packets by unit number (the mark), for each counting set; empty while the table is not there."""
        state = self.state()
        if state is None:
            return {}
        return {
            name: {int(element.key, 16): element.packets for element in state.sets.get(name, ())} for name in sets
        }

    def _list(self, command: str) -> dict[str, Any] | None:
        self._nft.set_json_output(True)
        try:
            code, output, error = self._nft.cmd(command)
        finally:
            self._nft.set_json_output(False)
        if code:
            if "No such file or directory" in error:
                return None
            raise NftError(f"nft: {error.strip()}")
        return json.loads(output) if output else {}
