"""What must be shown of clocks that jump: refused or healed, always told. A host's daemons get a clock of their own.

The clock is libfaketime's (wall clock only: CLOCK_BOOTTIME and CLOCK_MONOTONIC go on as they are, as when a person or a
time server sets the clock), read from a file for each daemon, so that it can be set while they run.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.revoking import held
from tests.mesh.told import in_journal
from tests.mesh.world import World

AGENT, PROXY, CONTROLLER = "hostmeshd", "hostmesh-proxy", "hostmesh-controller"
DAEMONS = {"h1": (AGENT, PROXY), "h2": (AGENT, PROXY, CONTROLLER)}
HEALED = 90.0  # two looks of an agent, with the longest pause between tries
TOLD = 45.0
_LIBRARY = "/usr/local/lib/libfaketime.so.1"
_DROP_IN = f"""[Service]
Environment=LD_PRELOAD={_LIBRARY} FAKETIME_TIMESTAMP_FILE=/run/clock-of-%p FAKETIME_NO_CACHE=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1
"""


@contextlib.contextmanager
def own_clocks(w: World) -> Iterator[World]:
    """The world with daemons whose clocks can be set; as it was after the ``with``."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    for name, daemons in DAEMONS.items():
        host = w.lab[name]
        shutil.copy(library, host.root / _LIBRARY.lstrip("/"))
        for daemon in daemons:
            set_clock(host, 0, daemon)
            host.write(f"/run/systemd/system/{daemon}.service.d/clock.conf", _DROP_IN)
    try:
        _restart(w)
        yield w
    finally:
        for name, daemons in DAEMONS.items():
            for daemon in daemons:
                w.lab[name].exec(["rm", "-r", f"/run/systemd/system/{daemon}.service.d/clock.conf"]).must()
        _restart(w)
        works_again(w)


def _restart(w: World) -> None:
    for name, daemons in DAEMONS.items():
        w.lab[name].systemctl("daemon-reload")
        w.lab[name].systemctl("restart", *(f"{daemon}.service" for daemon in daemons))
    works_again(w)


def set_clock(host: Host, hours: float, *daemons: str) -> None:
    """How far the daemons' wall clock is from the true one."""
    for daemon in daemons:
        host.write(f"/run/clock-of-{daemon}.new", f"{hours * 3600:+.0f}\n")
        host.exec(["mv", f"/run/clock-of-{daemon}.new", f"/run/clock-of-{daemon}"]).must()


def works(w: World) -> bool:
    """Whether a call from h1 to h2 gets through."""
    return w.shop("redis-cli", "-h", "redis", "ping").stdout.startswith("PONG")


def works_again(w: World) -> float:
    """Wait until calls get through; seconds."""
    began = time.monotonic()
    wait_until(lambda: works(w), "shop reaches redis", HEALED, 0.2)
    return time.monotonic() - began


def host_ahead(w: World) -> str:
    """A host's clock a day ahead: what is over by its clock is refused and told; well when it is right again"""
    cursor = w.h1.journal_cursor()
    with held(w) as open_before:
        set_clock(w.h1, 25, *DAEMONS["h1"])
        assert open_before()["ended"] is None, "what is open goes on"
    wait_until(lambda: not works(w), "shop is refused", TOLD, 0.5)
    peer = in_journal(w.h1, cursor, "redis-server", "expired", "is the clock of both hosts right?", timeout=TOLD)
    own = in_journal(w.h1, cursor, "identity of", "expired", timeout=TOLD)
    set_clock(w.h1, 0, *DAEMONS["h1"])
    return f"{peer!r}; {own!r}; healed {works_again(w):.1f} s after the clock"


def host_behind(w: World) -> str:
    """A host that boots with its clock a day behind: certificates have not begun, told; well when the clock is right"""
    cursor = w.h1.journal_cursor()
    set_clock(w.h1, -25, *DAEMONS["h1"])
    w.h1.systemctl("restart", *(f"{daemon}.service" for daemon in DAEMONS["h1"]))
    assert not works(w)
    away = in_journal(w.h1, cursor, "certificate begins", "is the clock right?", timeout=TOLD)
    set_clock(w.h1, 0, *DAEMONS["h1"])
    return f"{away!r}; healed {works_again(w):.1f} s after the clock"


def controller_ahead(w: World) -> str:
    """The controller's clock a day ahead: what it signs has not begun, is not taken, and told; well when it is right"""
    return _controller(w, 25, "not valid yet")


def controller_behind(w: World) -> str:
    """The controller's clock a day behind, before its CA began: it signs nothing, told; well when it is right"""
    return _controller(w, -25, "the intermediate certificate is not valid now")


def _controller(w: World, hours: float, word: str) -> str:
    cursor, old = w.h1.journal_cursor(), w.serials(w.h1)["shop.service"]
    set_clock(w.h2, hours, CONTROLLER)
    w.h2.exec(["hostmesh", "controller", "revoke", "serial", old]).must()  # h1 asks for another at once
    told = in_journal(w.h1, cursor, "identity of shop.service", word, timeout=TOLD)
    assert w.serials(w.h1)["shop.service"] == old
    w.h1.systemctl("restart", f"{AGENT}.service")  # comes to a controller whose own certificate is of another day
    set_clock(w.h2, 0, CONTROLLER)
    took = works_again(w)
    assert w.serials(w.h1)["shop.service"] != old
    w.h2.exec(["hostmesh", "controller", "unrevoke", "serial", old]).must()
    return f"{told!r}; healed {took:.1f} s after the clock"


def suspended(w: World) -> str:
    """A host asleep for 13 hours (its daemons frozen, the clocks of all moved on): it renews when it wakes; and back"""
    before, frozen = w.serials(w.h1), [f"{daemon}.service" for daemon in DAEMONS["h1"]]
    w.h1.systemctl("freeze", *frozen)
    try:
        for name, daemons in DAEMONS.items():
            set_clock(w.lab[name], 13, *daemons)
    finally:
        w.h1.systemctl("thaw", *frozen)
    awake = time.monotonic()
    _renewed(w, before)
    took, during = time.monotonic() - awake, w.serials(w.h1)
    assert works(w)
    for name, daemons in DAEMONS.items():
        set_clock(w.lab[name], 0, *daemons)
    back = time.monotonic()
    _renewed(w, during)
    healed = time.monotonic() - back
    return f"{len(before)} SVIDs renewed {took:.1f} s after waking; clocks set back: healed in {healed:.1f} s"


def _renewed(w: World, before: dict[str, str]) -> None:
    def is_new() -> bool:
        now = w.serials(w.h1)
        return set(now) == set(before) and not set(now.values()) & set(before.values())

    wait_until(is_new, "all of h1 have new SVIDs", HEALED, 0.5)
    works_again(w)


SHOWS: tuple[Callable[[World], str], ...] = (host_behind, controller_ahead, controller_behind, suspended, host_ahead)
"""CI shows the first two."""
