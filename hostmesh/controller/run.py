"""Turns settings into a serving controller: opens the store, follows time and other writers, stops in order."""

import asyncio
import logging
import signal
import sqlite3
import time

from hostmesh.apply.notify import Notifier
from hostmesh.controller import ca
from hostmesh.controller.config import Config
from hostmesh.controller.feed import Feed
from hostmesh.controller.server import Ports
from hostmesh.controller.service import Controller
from hostmesh.controller.store import Store
from hostmesh.errors import HostmeshError

log = logging.getLogger("hostmesh.controller")
TICK = 0.2  # how soon a revocation by the command line is in force, seconds
STOP_GRACE = 2.0


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = Store(config.state / "controller.db")
    try:
        authority = ca.load(config.state, store, config.trust_domain)
        feed = Feed(config, store, authority, time.monotonic)
        ports = Ports(config, authority, Controller(config, store, authority, feed))
        where = await ports.start()
        log.info("trust domain %s: hosts on port %d, enrolment on port %d", config.trust_domain, *where)
        _warn_of_age(authority.active.intermediate.not_valid_after_utc.timestamp() - time.time())
        notifier = Notifier()
        notifier.ready()
        notifier.status(f"trust domain {config.trust_domain}, ports {where[0]} and {where[1]}")
        await _follow(feed, stop, notifier)
        notifier.stopping()
        feed.close()
        await ports.stop(STOP_GRACE)
    finally:
        store.close()


async def _follow(feed: Feed, stop: asyncio.Event, notifier: Notifier) -> None:
    """Every tick, until told to stop: hosts that fell silent, and what the command line wrote to the store."""
    trouble = ""
    while not stop.is_set():
        before, trouble = trouble, _look(feed)
        if trouble != before:
            log.log(logging.ERROR if trouble else logging.INFO, "%s", trouble or "the store is well again")
        notifier.watchdog()
        try:
            await asyncio.wait_for(stop.wait(), TICK)
        except TimeoutError:
            continue


def _look(feed: Feed) -> str:
    """What hinders; the hosts are served with what is known."""
    try:
        feed.refresh()
        feed.withdraw_silent()
    except (HostmeshError, sqlite3.Error) as error:
        return str(error)
    return ""


def _warn_of_age(seconds: float) -> None:
    if seconds < 60 * 86400:
        log.warning("the intermediate certificate ends in %.0f days; after that nothing can be signed", seconds / 86400)
