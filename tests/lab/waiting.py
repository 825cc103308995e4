"""Turns "not yet" into "now" or a failure that says what was waited for: conditions with a deadline."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class MayYetError(AssertionError):
    """What was tried failed, and may do better a moment later."""


class NotInTimeError(AssertionError):
    """A condition that did not come true before its deadline."""


def wait_until(condition: Callable[[], T | None], what: str, timeout: float = 10.0, interval: float = 0.01) -> T:
    """Ask ``condition`` until it gives something true, and return that.

    ``timeout`` and ``interval`` in seconds. The condition is asked once more after the deadline, so that a
    slow machine fails on the thing and not on the clock. A command that fails, or answers no JSON, is "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        late, seen = time.monotonic() >= deadline, None
        try:
            seen = condition()
        except (MayYetError, ValueError):
            if late:
                raise
        if seen:
            return seen
        if late:
            raise NotInTimeError(f"not within {timeout:g} s: {what} (last seen: {seen!r})")
        time.sleep(interval)


async def until(condition: Callable[[], bool], what: str, within: float = 15.0) -> None:
    """`wait_until` for a condition that comes true in this event loop."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() >= deadline:
            raise NotInTimeError(f"not within {within:g} s: {what}")
        await asyncio.sleep(0.01)
