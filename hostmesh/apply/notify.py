"""Turns a daemon's state into messages to systemd (sd_notify(3)): READY, RELOADING, STOPPING, STATUS, WATCHDOG.

Law: nothing here waits for systemd, and no daemon ends because it could not be told.
"""

import logging
import os
import socket
import time

log = logging.getLogger(__name__)


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``; without one (started by hand) it says nothing."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    @property
    def watchdog_seconds(self) -> float:
        """How often systemd wants to hear of us, 0 when it doesn't (``WatchdogSec=``)."""
        return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6

    def ready(self) -> None:
        """Started, or reloaded."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Going away; what is in force stays in force."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + text.replace("\n", " "))

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto(message.encode(), self._address)
            except OSError as error:
                log.warning("systemd does not listen on %s: %s", self._address, error)
