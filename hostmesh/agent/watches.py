"""Turns what the kernel tells by itself into wake-ups and reports: inotify, netlink, nflog."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hostmesh.agent.reports import Reports
from hostmesh.agent.wakeups import DEBOUNCE, Wakeups
from hostmesh.errors import HostmeshError
from hostmesh.observe.folder import FolderWatch, Seen
from hostmesh.observe.kernel_events import NftWatch, RouteWatch
from hostmesh.observe.nflog import NflogReader
from hostmesh.observe.written import SUFFIX
from hostmesh.plan.redirect import TABLE
from hostmesh.policy.settings import Settings

_TICK = 1.0
_GONE = 0.2  # a file that is gone may be on its way back: `install` and some editors write so


class _Watch(Protocol):
    def fileno(self) -> int: ...
    def read(self) -> int: ...


class Watches:
    """All of them, on one event loop. units: unit number to (unit, its policy file), for the kernel's refusals.

    touched: wakes up who puts back what others changed in the kernel.
    settings_changed: called when the settings file became another.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        settings_file: Path,
        wakeups: Wakeups,
        touched: Wakeups,
        reports: Reports,
        units: Callable[[], Mapping[int, tuple[str, str]]],
        settings_changed: Callable[[], None],
    ) -> None:
        self._settings, self._reports, self._units, self._wakeups = settings, reports, units, wakeups
        self._nflog: NflogReader | None = None
        self._lost = 0
        self._settings_timer: asyncio.TimerHandle | None = None
        self._policies = FolderWatch(Path(settings.paths.policies), SUFFIX)
        self._settings_file = FolderWatch(settings_file.parent, settings_file.name)
        routes, ruleset = RouteWatch(settings.route_table), NftWatch(TABLE)
        self._settings_changed = settings_changed
        self._watches: tuple[tuple[_Watch, Callable[[int], None]], ...] = (
            (self._policies, lambda seen: wakeups.request("policies", DEBOUNCE if seen == Seen.WRITTEN else _GONE)),
            (self._settings_file, lambda _: self._settings_soon()),
            (routes, lambda _: touched.request("network")),
            (ruleset, lambda _: touched.request("ruleset", 0.0)),
        )
        self._closers = (self._policies.close, self._settings_file.close, routes.close, ruleset.close)

    @property
    def nflog_lost(self) -> int:
        """How often the kernel's log overflowed, since the start."""
        return self._lost + (self._nflog.lost if self._nflog else 0)

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        for watch, wake in self._watches:
            loop.add_reader(watch.fileno(), self._on_readable, watch, wake)
        self._policies.attach()
        self._settings_file.attach()
        try:
            while True:
                self._attach_again()
                if self._nflog is None:
                    self._open_nflog(loop)
                self._reports.tick()
                await asyncio.sleep(_TICK)
        finally:
            if self._settings_timer is not None:
                self._settings_timer.cancel()
            for watch, _ in self._watches:
                loop.remove_reader(watch.fileno())
            if self._nflog is not None:
                loop.remove_reader(self._nflog.fileno())
                self._nflog.close()
            for close in self._closers:
                close()

    def _on_readable(self, watch: _Watch, wake: Callable[[int], None]) -> None:
        seen = watch.read()
        if seen:
            self._attach_again()
            wake(seen)

    def _attach_again(self) -> None:
        """A folder that came back may have been filled before it was watched: that is worth a look."""
        if not self._policies.attached and self._policies.attach():
            self._wakeups.request("policies")
        if not self._settings_file.attached and self._settings_file.attach():
            self._settings_soon()

    def _settings_soon(self) -> None:
        if self._settings_timer is not None:
            self._settings_timer.cancel()
        self._settings_timer = asyncio.get_running_loop().call_later(_GONE, self._settings_changed)

    def _open_nflog(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._nflog = NflogReader(self._settings.nflog_group)
        except (OSError, HostmeshError) as error:  # told, and tried again: traffic does not hang on it
            self._reports.state("kernel refusals are not logged", str(error))
            return
        self._reports.state("kernel refusals are not logged", "")
        loop.add_reader(self._nflog.fileno(), self._on_refusals, self._nflog)

    def _on_refusals(self, reader: NflogReader) -> None:
        self._reports.refusals(reader.read(), self._units())
