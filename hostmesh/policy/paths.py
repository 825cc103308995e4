"""Turns the path of a request into the one form in which rules are compared with it. Twin of `proxy/core/src/path.rs`.

Held together by `tests/vectors/paths.json`. The form decodes percent-encoded unreserved characters (RFC 3986,
section 2.3) and writes other encodings in capitals; nothing else changes. What servers read in different ways has no
form: it is ambiguous, and a rule must not guess.
"""

import re

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NEVER_PLAIN = frozenset('"#<>`?')
_HEX = frozenset("0123456789abcdefABCDEF")
_DOUBLED = re.compile(r"%25[0-9A-Fa-f]{2}")


class AmbiguousPath(ValueError):
    """The path has no normal form; the message says why."""


def path_of_target(target: str) -> str:
    """The path of a request target (RFC 9112, section 3.2): no query, no authority."""
    path = target.partition("?")[0]
    if path.startswith("/") or "://" not in path:
        return path
    return "/" + path.partition("://")[2].partition("/")[2]


def normal_path(raw: str) -> str:
    """The normal form of a path without its query. Raises AmbiguousPath."""
    if not raw.startswith("/"):
        raise AmbiguousPath("does not begin with a slash")
    out = []
    at = 0
    while at < len(raw):
        if raw[at] == "%":
            out.append(_decoded(raw[at + 1 : at + 3]))
            at += 3
        else:
            out.append(_literal(raw[at]))
            at += 1
    path = "".join(out)
    if _DOUBLED.search(path):
        raise AmbiguousPath("an encoding that is encoded again")
    _check_segments(path)
    return path


def _literal(char: str) -> str:
    if not "\x21" <= char <= "\x7e":
        raise AmbiguousPath("a control character, a space or a byte beyond ASCII")
    if char == "\\":
        raise AmbiguousPath("a backslash")
    if char in _NEVER_PLAIN:
        raise AmbiguousPath(f"the character {char}, which must be encoded")
    return char


def _decoded(digits: str) -> str:
    if len(digits) != 2 or not _HEX.issuperset(digits):
        raise AmbiguousPath("a percent sign without two hexadecimal digits")
    code = int(digits, 16)
    char = chr(code)
    if char in _UNRESERVED:
        return char
    if char in "/\\":
        raise AmbiguousPath("an encoded slash" if char == "/" else "an encoded backslash")
    if code < 0x20 or code == 0x7F:
        raise AmbiguousPath("an encoded control character")
    return "%" + digits.upper()


def _check_segments(path: str) -> None:
    *inner, last = path.split("/")[1:]
    if "" in inner:
        raise AmbiguousPath("an empty segment")
    for segment in (*inner, last):
        name = segment.partition(";")[0]  # some servers cut path parameters off before they resolve dots
        if name in (".", ".."):
            raise AmbiguousPath("a dot segment")
        if segment and not name:
            raise AmbiguousPath("a segment of path parameters only")


def path_matches(pattern: str, path: str) -> bool:
    """Whether a rule's path fits a path in normal form: a ``*`` at the end stands for any rest."""
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern
