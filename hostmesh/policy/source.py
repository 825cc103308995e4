"""Turns TOML text into tables in which every key and value knows its file, line and column.

tomli says what the text means but not where things stand, so the text is read twice: once by tomli, and once, being
known to be valid by then, by the small scanner below, which only finds where keys and values begin (TOML 1.0 and the
newlines that 1.1 allows in inline tables).
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import tomli

from hostmesh.errors import Place
from hostmesh.policy.findings import Code, Findings

type_names = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    list: "a list",
}

_BLANK = re.compile(r"[ \t\r\n]*(?:#[^\n]*[ \t\r\n]*)*")
_INLINE_BLANK = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ONE_LINE_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_MANY_LINE_STRING = re.compile(r"\"\"\"(?:[^\\]|\\.)*?\"{3,5}|'''.*?'{3,5}", re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\n]+")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place. ``data``: a dict of nodes, a list of nodes, or a plain TOML value.

    ``key_place`` is where its key stands; for an element of a list the same as ``place``.
    """

    place: Place
    key_place: Place
    data: object

    @property
    def kind(self) -> str:
        """What a person would call the type: ``a string``."""
        return type_names.get(type(self.data), "a date or time")

    @property
    def table(self) -> dict[str, "Node"]:
        """The entries, where the value is a table; nothing otherwise."""
        return self.data if isinstance(self.data, dict) else {}

    @property
    def items(self) -> list["Node"]:
        """The elements, where the value is a list; nothing otherwise."""
        return self.data if isinstance(self.data, list) else []


def parse(file: str, text: str, findings: Findings) -> Node | None:
    """Read one file; what TOML does not allow goes to ``findings``, and there is no tree then."""
    if text.startswith("\ufeff"):
        findings.add(Code.SYNTAX, Place(file, 1, 1), "begins with a byte order mark", "save it as UTF-8 without one")
        return None
    try:
        tree = tomli.loads(text)
        places = _Scanner(text).scan()
    except tomli.TOMLDecodeError as error:
        findings.add(Code.SYNTAX, Place(file, error.lineno, error.colno), f"not TOML: {error.msg}")
        return None
    except (RecursionError, ValueError) as error:
        findings.add(Code.SYNTAX, Place(file), f"not TOML that can be read: {error}")
        return None
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(offset: int) -> Place:
        line = bisect_right(starts, offset)
        return Place(file, line, offset - starts[line - 1] + 1)

    def node(path: Path, data: object) -> Node:
        key, value = places.get(path, (0, 0))
        inner: object = data
        if isinstance(data, dict):
            inner = {name: node((*path, name), entry) for name, entry in data.items()}
        elif isinstance(data, list):
            inner = [node((*path, index), entry) for index, entry in enumerate(data)]
        return Node(place(value), place(key), inner)

    whole = node((), tree)
    return Node(Place(file), Place(file), whole.data)


class _Scanner:
    """Walks valid TOML and notes, for every path of keys and indices, where key and value begin (offsets)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, tuple[int, int]] = {}
        self.lengths: dict[Path, int] = {}

    def scan(self) -> dict[Path, tuple[int, int]]:
        table: Path = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                table = self._header("[[", "]]")
            elif self.text[self.at] == "[":
                table = self._header("[", "]")
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self.found

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _header(self, opening: str, closing: str) -> Path:
        start = self.at
        self.at += len(opening)
        self._skip(_INLINE_BLANK)
        path = self._enter((), self._keys(), start, start)
        self._skip(_INLINE_BLANK)
        self.at += len(closing)
        if opening == "[[":
            index = self.lengths.get(path, 0)
            self.lengths[path] = index + 1
            path = (*path, index)
        self.found[path] = (start, start)
        return path

    def _enter(self, table: Path, keys: list[tuple[str, int]], key_at: int, value_at: int) -> Path:
        """Go down the keys; what is named here first stands here. A list of tables is entered at its last element."""
        path = table
        for depth, (key, _) in enumerate(keys):
            path = (*path, key)
            self.found.setdefault(path, (key_at, value_at))
            if path in self.lengths and depth < len(keys) - 1:
                path = (*path, self.lengths[path] - 1)
        return path

    def _keys(self) -> list[tuple[str, int]]:
        return list(self._key_parts())

    def _key_parts(self) -> Iterator[tuple[str, int]]:
        while True:
            start = self.at
            if self.text[self.at] in "\"'":
                self._skip(_ONE_LINE_STRING)
                yield tomli.loads(f"k = {self.text[start : self.at]}")["k"], start
            else:
                self._skip(_BARE_KEY)
                yield self.text[start : self.at], start
            self._skip(_INLINE_BLANK)
            if self.text[self.at] != ".":
                return
            self.at += 1
            self._skip(_INLINE_BLANK)

    def _pair(self, table: Path) -> None:
        key_at = self.at
        keys = self._keys()
        self.at += 1  # the equals sign
        self._skip(_INLINE_BLANK)
        path = self._enter(table, keys[:-1], key_at, key_at)
        path = (*path, keys[-1][0])
        self.found[path] = (key_at, self.at)
        self._value(path)

    def _value(self, path: Path) -> None:
        char = self.text[self.at]
        if char == "[":
            self._list(path)
        elif char == "{":
            self._inline_table(path)
        elif self.text.startswith(('"""', "'''"), self.at):
            self._skip(_MANY_LINE_STRING)
        elif char in "\"'":
            self._skip(_ONE_LINE_STRING)
        else:
            self._skip(_SCALAR)

    def _list(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._more("]"):
            self.found[(*path, index)] = (self.at, self.at)
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        while self._more("}"):
            self._pair(path)

    def _more(self, closing: str) -> bool:
        """Step over blanks and a comma to the next element; False, and past the end, where there is none."""
        self._skip(_BLANK)
        if self.text[self.at] == ",":
            self.at += 1
            self._skip(_BLANK)
        if self.text[self.at] == closing:
            self.at += 1
            return False
        return True
