"""Turns many causes into few runs of the loop: what comes within a few milliseconds is one wake-up."""

import asyncio

DEBOUNCE = 0.005


class Wakeups:
    """Collects reasons. The first one sets the time; later ones can only make it earlier, never later."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def request(self, reason: str, delay: float = DEBOUNCE) -> None:
        """Ask for a run in ``delay`` seconds at the latest."""
        loop = asyncio.get_running_loop()
        at = loop.time() + delay
        self._reasons.add(reason)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._due.set)

    async def wait(self) -> frozenset[str]:
        """Wait until a run is due; the reasons for it."""
        await self._due.wait()
        self._due.clear()
        self._timer = None
        reasons, self._reasons = frozenset(self._reasons), set()
        return reasons
