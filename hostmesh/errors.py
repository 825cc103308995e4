"""Every error of the control side tells place, expectation and remedy.

A :class:`Diagnostic` is one finding a person can act on. Exceptions carry diagnostics; nothing is raised as bare text.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a file something was written: line and column count from 1; 0 means "the whole file"."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"

    @property
    def rule(self) -> str:
        """``file:line``, the form in which journal, explain and nft comments name a rule."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: a stable code, where, what is wrong, what would be right."""

    code: str
    place: Place
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"\n    {self.hint}" if self.hint else ""
        return f"{self.place}: {self.message} [{self.code}]{hint}"


class HostmeshError(Exception):
    """An error that a person can act on: what happened, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n    {self.hint}" if self.hint else self.message


class PolicyError(HostmeshError):
    """Policy files that do not pass: all their diagnostics at once, in order of place."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        self.diagnostics = tuple(sorted(diagnostics, key=lambda d: (d.place, d.code)))
        count = len(self.diagnostics)
        errors = "1 error" if count == 1 else f"{count} errors"
        super().__init__("\n".join(map(str, self.diagnostics)), f"{errors}; nothing was changed")
