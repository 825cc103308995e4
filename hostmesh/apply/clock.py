"""Reads the clocks of the host: the wall's, which people set, and the one that neither stops nor jumps."""

import time


def wall() -> float:
    """Seconds since the epoch."""
    return time.time()


def boottime() -> float:
    """Seconds since boot, on CLOCK_BOOTTIME (clock_gettime(2)): suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
