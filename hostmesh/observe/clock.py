"""Tells whether something keeps the kernel's clock right (adjtimex(2))."""

import ctypes
import os

from hostmesh.errors import HostmeshError

_TIME_ERROR = 5  # linux/timex.h: the clock is not synchronized
_BUFFER_BYTES = 512  # struct timex has 208; zeroes ask, and set nothing


class ClockError(HostmeshError):
    """The kernel did not say."""


def synchronized() -> bool:
    """Does the kernel hold its clock for synchronized?"""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_BUFFER_BYTES))
    if state < 0:
        raise ClockError(f"adjtimex: {os.strerror(ctypes.get_errno())}")
    return bool(state != _TIME_ERROR)
