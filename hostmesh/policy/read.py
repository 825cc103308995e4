"""Turns nodes into typed values; what does not fit becomes a finding and the default is given back.

The caller never uses a value read beside a finding: `Findings.finish` raises before that.
"""

import re
from collections.abc import Iterable
from typing import TypeVar

from hostmesh.policy.findings import Code, Findings, nearest
from hostmesh.policy.keys import Table
from hostmesh.policy.source import Node, type_names

T = TypeVar("T")

_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)\Z")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DAY_MS = 86_400_000


class Reader:
    """Reads values of one set of files into one list of findings."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def bad(self, node: Node, message: str, hint: str = "") -> None:
        """Note a value that cannot be."""
        self.findings.add(Code.BAD_VALUE, node.place, message, hint)

    def typed(self, node: Node, wanted: type[T]) -> T | None:
        """The value, if TOML gave it exactly this type (true is no number)."""
        if type(node.data) is wanted:
            return node.data
        name = type_names[wanted]
        self.findings.add(Code.WRONG_TYPE, node.place, f"expected {name}, found {node.kind}")
        return None

    def table(self, node: Node | None, schema: Table) -> dict[str, Node]:
        """The entries of a table that the schema knows; the others are findings."""
        if node is None or self.typed(node, dict) is None:
            return {}
        known = {}
        where = f"in [{schema.name}]" if schema.name else "at the top"
        for name, entry in node.table.items():
            if name in schema.words:
                known[name] = entry
            else:
                self.findings.add(
                    Code.UNKNOWN_KEY, entry.key_place, f"unknown key {name!r} {where}", nearest(name, schema.words)
                )
        return known

    def tables(self, node: Node | None, name: str) -> list[Node]:
        """The elements of a list of tables, ``[[name]]``."""
        if node is None:
            return []
        if not isinstance(node.data, list):
            self.findings.add(
                Code.WRONG_TYPE, node.place, f"expected a list of tables, found {node.kind}", f"write [[{name}]]"
            )
            return []
        return [item for item in node.items if self.typed(item, dict) is not None]

    def strings(self, node: Node | None) -> list[tuple[Node, str]]:
        """A list of strings, each with its node."""
        if node is None:
            return []
        if not isinstance(node.data, list):
            hint = f"[{node.data!r}]".replace("'", '"') if isinstance(node.data, str) else ""
            self.findings.add(
                Code.WRONG_TYPE, node.place, f"expected a list of strings, found {node.kind}", hint and f"write {hint}"
            )
            return []
        read = [(item, self.typed(item, str)) for item in node.items]
        return [(item, text) for item, text in read if text is not None]

    def string(self, node: Node | None, default: str) -> str:
        """A string."""
        text = self.typed(node, str) if node else None
        return default if text is None else text

    def boolean(self, node: Node | None, default: bool) -> bool:
        """True or false."""
        value = self.typed(node, bool) if node else None
        return default if value is None else value

    def integer(self, node: Node | None, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.typed(node, int) if node else None
        if node is None or value is None:
            return default
        if not low <= value <= high:
            self.bad(node, f"{value} is not in {low}..{high}")
            return default
        return value

    def ratio(self, node: Node | None, default: float) -> float:
        """A share, 0..1."""
        value = self._float(node)
        if node is not None and value is not None and not 0 <= value <= 1:
            hint = f"{value:g} % is {value / 100:g}" if 1 < value <= 100 else ""
            self.bad(node, f"{value:g} is not in 0..1", hint)
            return default
        return default if value is None else value

    def number(self, node: Node | None, default: float, low: int, high: int) -> float:
        """A number from ``low`` to ``high``, whole or not."""
        value = self._float(node)
        if node is not None and value is not None and not low <= value <= high:
            self.bad(node, f"{value:g} is not in {low}..{high}")
            return default
        return default if value is None else value

    def _float(self, node: Node | None) -> float | None:
        """What may be written as a whole number as well."""
        if node is None:
            return None
        small = type(node.data) is int and abs(node.data) < 2**53
        return float(node.data) if small and isinstance(node.data, int) else self.typed(node, float)

    def duration_ms(self, node: Node | None, default: int) -> int:
        """``250ms``, ``10s``, ``1m``, ``1h``: milliseconds, more than 0, at most a day."""
        if node is None:
            return default
        if type(node.data) in (int, float):
            hint = f'write "{node.data}s" or "{node.data}ms"'
            self.findings.add(Code.WRONG_TYPE, node.place, "expected a duration with its unit, found a number", hint)
            return default
        text = self.typed(node, str)
        if text is None:
            return default
        match = _DURATION.match(text)
        value = int(match[1]) * _MILLISECONDS[match[2]] if match else 0
        if not match:
            self.bad(node, f"{text!r} is not a duration", 'for example "250ms", "10s", "1m"')
        elif not 0 < value <= _DAY_MS:
            self.bad(node, f"{text!r} is not more than 0 and at most a day", "leave the key out for no limit")
        return value

    def choice(self, node: Node | None, default: str, words: Iterable[str]) -> str:
        """One of a few words."""
        text = self.typed(node, str) if node else None
        if node is None or text is None:
            return default
        known = sorted(map(str, words))
        if text in known:
            return text
        self.bad(node, f"{text!r} is none of: {', '.join(known)}", nearest(text, known))
        return default
