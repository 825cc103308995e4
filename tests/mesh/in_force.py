"""What a host's proxy goes by: the snapshot that it took last, as it lies on its disk."""

import json
from typing import Any

from tests.lab.host import Host


def snapshot(host: Host) -> dict[str, Any]:
    """All of it."""
    told: dict[str, Any] = json.loads(host.read("/var/lib/hostmesh-proxy/snapshot.json"))
    return told


def unit(host: Host, name: str) -> dict[str, Any] | None:
    """What it has of a unit of the host; None if it has none of that name."""
    return next((known for known in snapshot(host)["units"] if known["unit"] == name), None)


def records_all(host: Host, name: str) -> bool:
    """Has each request of the unit a line in the journal?"""
    known = unit(host, name)
    return known is not None and bool(known["access_log"] == "all")
