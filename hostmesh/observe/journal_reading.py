"""Turns the host's journal into entries, by sd-journal(3) of its own libsystemd (docs/decisions/0010-journal.md)."""

import ctypes
import os
from collections.abc import Iterator, Sequence

from hostmesh.errors import HostmeshError

_LIBRARY = "libsystemd.so.0"
_LOCAL_ONLY, _SYSTEM = 1, 4  # sd_journal_open(3)
_NOTHING_THERE = 2  # ENOENT
Entry = dict[str, str]


def entries(matches: Sequence[tuple[str, str]], since_usec: int) -> Iterator[Entry]:
    """Entries since then (microseconds after the epoch), oldest first: of each field that is named one value fits.

    Raises HostmeshError where the journal cannot be read. A caller who may not read it sees what is his own.
    """
    library = _loaded()
    journal = ctypes.c_void_p()
    _check(library.sd_journal_open(ctypes.byref(journal), _LOCAL_ONLY | _SYSTEM), "opened")
    try:
        for name, value in matches:
            match = f"{name}={value}".encode()
            _check(library.sd_journal_add_match(journal, match, len(match)), "searched")
        _check(library.sd_journal_set_data_threshold(journal, 0), "read")
        _check(library.sd_journal_seek_realtime_usec(journal, since_usec), "sought in")
        while _check(library.sd_journal_next(journal), "read"):
            entry = _fields(library, journal)
            at = ctypes.c_uint64()
            _check(library.sd_journal_get_realtime_usec(journal, ctypes.byref(at)), "read")
            if at.value >= since_usec:  # seeking finds the nearest, which may be before
                yield entry
    finally:
        library.sd_journal_close(journal)


def _fields(library: ctypes.CDLL, journal: ctypes.c_void_p) -> Entry:
    data, length = ctypes.c_void_p(), ctypes.c_size_t()
    found = {}
    library.sd_journal_restart_data(journal)
    while _check(library.sd_journal_enumerate_data(journal, ctypes.byref(data), ctypes.byref(length)), "read"):
        name, _, value = ctypes.string_at(data.value or 0, length.value).partition(b"=")
        found[name.decode("ascii", "replace")] = value.decode("utf-8", "replace")
    return found


def _loaded() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise HostmeshError(
            f"the journal cannot be read: {error}", f"apt install {_LIBRARY.partition('.')[0]}0"
        ) from error
    pointer, size, usec = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64
    signatures = {
        "sd_journal_open": (pointer, ctypes.c_int),
        "sd_journal_add_match": (pointer, ctypes.c_char_p, size),
        "sd_journal_set_data_threshold": (pointer, size),
        "sd_journal_seek_realtime_usec": (pointer, usec),
        "sd_journal_next": (pointer,),
        "sd_journal_get_realtime_usec": (pointer, pointer),
        "sd_journal_restart_data": (pointer,),
        "sd_journal_enumerate_data": (pointer, pointer, pointer),
        "sd_journal_close": (pointer,),
    }
    for name, arguments in signatures.items():
        getattr(library, name).argtypes = arguments
    for name in ("sd_journal_restart_data", "sd_journal_close"):
        getattr(library, name).restype = None
    return library


def _check(result: int, doing: str) -> int:
    """What the call gave; its error as ours (negative errno, as sd-journal(3) has it)."""
    if result < 0 and result != -_NOTHING_THERE:
        raise HostmeshError(
            f"the journal cannot be {doing}: {os.strerror(-result)}", "journalctl --verify; are you root?"
        )
    return max(result, 0)
