"""Turns SVIDs in force into the question of which to renew now, by the clock that neither stops nor jumps.

A certificate's age is counted on CLOCK_BOOTTIME (clock_gettime(2)) from when it was first seen, and by the wall clock;
the older of the two counts: a clock that is set back, or a suspended host, must not let a certificate run out. One that
has not begun was made while some clock was ahead: nobody takes it, a new one is due.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from hostmesh.identity.rotation import SvidState, state
from hostmesh.wire.proxy_control import SvidStatus


@dataclass(frozen=True, slots=True)
class _Seen:
    wall: float
    boot: float
    jitter: float


class Lifetimes:
    """Remembers when each certificate was first seen, and draws its jitter once."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._seen: dict[str, _Seen] = {}

    def state(self, svid: SvidStatus, wall: float, boot: float) -> SvidState:
        """What the certificate is good for; times in seconds, ``boot`` on CLOCK_BOOTTIME."""
        seen = self._seen.get(svid.serial)
        if seen is None:
            seen = self._seen[svid.serial] = _Seen(wall, boot, self._chance.random())
        now = max(wall, seen.wall + boot - seen.boot)
        return state(_utc(now), _utc(svid.not_before), _utc(svid.not_after), seen.jitter)

    def due(self, wanted: dict[str, str], there: Iterable[SvidStatus], wall: float, boot: float) -> list[str]:
        """The units that need an SVID now. wanted: unit to SPIFFE ID; there: what the proxy holds."""
        held = {svid.unit: svid for svid in there}
        serials = {svid.serial for svid in held.values()}
        self._seen = {serial: seen for serial, seen in self._seen.items() if serial in serials}
        return [
            unit
            for unit, spiffe_id in sorted(wanted.items())
            if (svid := held.get(unit)) is None
            or svid.spiffe_id != spiffe_id
            or svid.not_before > wall
            or self.state(svid, wall, boot) is not SvidState.FRESH
        ]


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
