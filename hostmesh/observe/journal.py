"""Turns fields into journal entries, by journald's native protocol (systemd.io, JOURNAL_NATIVE_PROTOCOL).

Law: nothing here waits for journald. An entry that cannot be handed over at once is counted in `Journal.lost`.
"""

import array
import errno
import fcntl
import os
import socket
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def encode(fields: Mapping[str, str | int]) -> bytes:
    """The datagram of one entry. Empty values are left out; a value with a newline takes the length-prefixed form."""
    out = bytearray()
    for name, value in fields.items():
        data = str(value).encode("utf-8", "surrogateescape")
        if not data:
            continue
        if b"\n" in data:
            out += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)


class Journal:
    """A sender. As root, an entry with ``OBJECT_SYSTEMD_UNIT=UNIT`` shows in ``journalctl -u UNIT`` (journalctl(1))."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.lost = 0

    def send(self, fields: Mapping[str, str | int]) -> bool:
        """Hand over one entry; large ones in a sealed memfd. False (and counted) when journald doesn't take it."""
        data = encode(fields)
        try:
            try:
                self._socket.sendto(data, self._path)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._send_memfd(data)
        except OSError:  # whatever it is: nobody may fall because journald did
            self.lost += 1
            return False
        return True

    def _send_memfd(self, data: bytes) -> None:
        memfd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(memfd, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memfd]).tobytes())
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(memfd)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
