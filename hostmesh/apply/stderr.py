"""Turns log records into lines on stderr as journald reads them (sd-daemon(3)), without waiting for it.

Law: a journald that is frozen, full or gone holds up no daemon. A line that it does not take at once is lost.
"""

import logging
import os
import socket
import stat
import sys

_SYSLOG = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class StderrHandler(logging.Handler):
    """For daemons. Where stderr is a terminal or a file, it is written as usual."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._socket = socket.socket(fileno=os.dup(descriptor)) if _is_socket(descriptor) else None
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write what is said."""
        level = next((level for at_least, level in _SYSLOG if record.levelno >= at_least), 7)
        said = self.format(record)
        if record.exc_info is None:  # journald makes an entry of each line: the remedy belongs to the sentence
            said = said.replace("\n    ", "; ")
        text = "".join(f"<{level}>{line}\n" for line in said.splitlines())
        if self._socket is None:
            sys.stderr.write(text)
            sys.stderr.flush()
            return
        try:
            self._socket.send(text.encode(errors="replace"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Give the descriptor back."""
        if self._socket is not None:
            self._socket.close()
        super().close()


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # closed: what is said then goes nowhere
