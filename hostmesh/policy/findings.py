"""Collects what is wrong with files, all of it at once: code, place, what was expected, the nearest right word."""

import difflib
from collections.abc import Iterable
from enum import StrEnum

from hostmesh.errors import Diagnostic, Place, PolicyError


class Code(StrEnum):
    """Every kind of finding; the list is closed."""

    SYNTAX = "syntax"
    UNKNOWN_KEY = "unknown-key"
    WRONG_TYPE = "wrong-type"
    BAD_VALUE = "bad-value"
    MISSING = "missing-key"
    FILE_NAME = "file-name"
    DUPLICATE = "duplicate"
    UNREADABLE = "unreadable"


class Findings:
    """A list that grows while files are read. Not an exception: reading goes on after the first finding."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []

    def add(self, code: Code, place: Place, message: str, hint: str = "") -> None:
        """Note one finding."""
        self.diagnostics.append(Diagnostic(code.value, place, message, hint))

    def finish(self) -> None:
        """Raise all of it as one PolicyError, if there is any."""
        if self.diagnostics:
            raise PolicyError(tuple(self.diagnostics))


def nearest(word: str, words: Iterable[str]) -> str:
    """``did you mean 'x'?`` with the most similar right word, else all of them if they are few, else nothing."""
    known = sorted(map(str, words))
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"one of: {', '.join(known)}" if 0 < len(known) <= 12 else ""  # longer lists help nobody
