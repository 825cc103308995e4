"""Turns a certificate's times into what to do about it: nothing, renew, or ask for help.

Pure: the clock and the draw are arguments. A mesh whose certificates were all made in one minute must not renew them
in one minute, hence the jitter.
"""

from datetime import datetime, timedelta
from enum import StrEnum

HOST_LIFE = timedelta(days=7)
# For this long after its life a host's certificate still opens a connection, and the controller lets it renew, no more.
HOST_GRACE = timedelta(days=7)
CONTROLLER_LIFE = timedelta(hours=24)
# Hosts whose clock is a little behind must not find a new certificate "not yet valid".
BACKDATE = timedelta(minutes=5)
JITTER_SHARE = 0.1


class SvidState(StrEnum):
    """fresh: leave it. due: renew, it still does everything. grace: it can do nothing but renew. expired: of no use."""

    FRESH = "fresh"
    DUE = "due"
    GRACE = "grace"
    EXPIRED = "expired"


def renew_at(not_before: datetime, not_after: datetime, jitter: float, grace: timedelta = timedelta(0)) -> datetime:
    """When to renew: at half of the life without its grace, up to a tenth of it earlier. jitter: 0..1, drawn once."""
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter {jitter} is not in 0..1")
    life = not_after - grace - not_before
    return not_before + life * (0.5 - JITTER_SHARE * jitter)


def state(
    now: datetime, not_before: datetime, not_after: datetime, jitter: float = 0.0, grace: timedelta = timedelta(0)
) -> SvidState:
    """What the certificate is good for at ``now``. Before ``not_before`` it is fresh: that is a matter of clocks."""
    if now >= not_after:
        return SvidState.EXPIRED
    if now >= not_after - grace:
        return SvidState.GRACE
    return SvidState.DUE if now >= renew_at(not_before, not_after, jitter, grace) else SvidState.FRESH
