"""Turns typed tables, chains, sets and rules into readable nft text.

Law: text that leaves here refers only to sets, chains and counters that are there, and every rule and element says in a
comment what it is for (nft(8)). What is inside a rule stays nft's own language.
"""

import hashlib
import re
from dataclasses import dataclass, replace

from hostmesh.errors import HostmeshError

COMMENT_MAX = 127
"""Bytes of a comment that the kernel keeps (NFTNL_UDATA_COMMENT_MAXLEN less the closing NUL)."""

STRUCTURE = "structure "
"""Begins the comment of a table's first set."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}\Z")
_SET_REF = re.compile(r"@([a-z][a-z0-9_]*)")
_CHAIN_REF = re.compile(r"\b(?:jump|goto) ([a-z][a-z0-9_]*)")


class BadRuleset(HostmeshError):
    """A ruleset that would not load, or would not say what it is for."""


def comment_text(text: str) -> str:
    """``text`` as nft can hold it: no quotes, no control characters; of a long one the end stays (file and line)."""
    clean = re.sub(r'["\\\x00-\x1f\x7f]', "?", text)
    data = clean.encode()
    return clean if len(data) <= COMMENT_MAX else data[-COMMENT_MAX:].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: matches and statements in nft's language, and what it is for."""

    body: str
    comment: str

    def render(self) -> str:
        return f'{self.body} comment "{comment_text(self.comment)}"'


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order. ``hook``: ``type T hook H priority P; policy accept;`` for a base chain, else empty."""

    name: str
    rules: tuple[Rule, ...]
    hook: str = ""

    def render(self) -> str:
        head = [f"\t\t{self.hook}"] if self.hook else []
        return "\n".join([f"\tchain {self.name} {{", *head, *(f"\t\t{rule.render()}" for rule in self.rules), "\t}"])


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """One element of a set or map, keys as nft lists them. ``value`` is empty in a set.

    ``packets`` and ``octets`` are the counts to begin with, for sets that count.
    """

    key: str
    value: str = ""
    comment: str = ""
    packets: int = 0
    octets: int = 0

    def render(self) -> str:
        count = f" counter packets {self.packets} bytes {self.octets}" if self.packets else ""
        value = f" : {self.value}" if self.value else ""
        comment = f' comment "{comment_text(self.comment)}"' if self.comment else ""
        return f"{self.key}{count}{comment}{value}"


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with ``data`` a map. ``typeof`` and ``data`` are nft expressions that give the types.

    ``options``: lines of its head (``flags interval``, ``size 65536``, ``counter``). ``dynamic``: packets fill it, the
    plan does not; its elements are no part of a comparison.
    """

    name: str
    typeof: str
    elements: tuple[Element, ...] = ()
    data: str = ""
    options: tuple[str, ...] = ()
    dynamic: bool = False
    comment: str = ""

    def render(self, with_elements: bool = True) -> str:
        kind, types = ("map", f"{self.typeof} : {self.data}") if self.data else ("set", self.typeof)
        lines = [f"\t{kind} {self.name} {{", f"\t\ttypeof {types}", *(f"\t\t{option}" for option in self.options)]
        if self.comment:
            lines.append(f'\t\tcomment "{comment_text(self.comment)}"')
        if with_elements and self.elements:
            body = ",\n\t\t\t     ".join(element.render() for element in self.elements)
            lines.append(f"\t\telements = {{ {body} }}")
        return "\n".join([*lines, "\t}"])


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a family; checked when made."""

    family: str
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    def __post_init__(self) -> None:
        names = [item.name for item in self.sets] + [chain.name for chain in self.chains]
        for name in names:
            if not _NAME.match(name) or names.count(name) > 1:
                raise BadRuleset(f"{name!r} is not a name of its own in table {self.name}")
        for chain in self.chains:
            for rule in chain.rules:
                self._check(chain, rule)
        for item in self.sets:
            if item.dynamic and any(element.comment for element in item.elements):
                raise BadRuleset(f"set {item.name} is filled by packets: its elements carry no comment")
            if not item.dynamic and not all(element.comment for element in item.elements):
                raise BadRuleset(f"an element of {item.name} does not say what it is for")

    def _check(self, chain: Chain, rule: Rule) -> None:
        if not rule.comment:
            raise BadRuleset(f"a rule of chain {chain.name} does not say what it is for: {rule.body}")
        sets = {item.name for item in self.sets}
        chains = {item.name for item in self.chains}
        missing = (set(_SET_REF.findall(rule.body)) - sets) | (set(_CHAIN_REF.findall(rule.body)) - chains)
        if missing:
            raise BadRuleset(f"a rule of chain {chain.name} refers to {', '.join(sorted(missing))}, which is not there")

    def set(self, name: str) -> Set:
        """The set or map of that name; KeyError if there is none."""
        for item in self.sets:
            if item.name == name:
                return item
        raise KeyError(name)

    @property
    def structure(self) -> str:
        """Digest of everything but the elements: equal structure, and elements alone need to change."""
        parts = [item.render(with_elements=False) for item in self.sets] + [chain.render() for chain in self.chains]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def with_counts(self, counts: dict[str, tuple[Element, ...]]) -> "Table":
        """The table with the counting sets beginning at ``counts`` (by set name): nothing is lost by replacing it."""
        sets = tuple(replace(item, elements=counts.get(item.name, ())) if item.dynamic else item for item in self.sets)
        return replace(self, sets=sets)

    def render(self) -> str:
        """The whole table as nft text. The first set's comment carries the digest: JSON does not list a table's own."""
        first = replace(self.sets[0], comment=STRUCTURE + self.structure)
        parts = [item.render() for item in (first, *self.sets[1:])] + [chain.render() for chain in self.chains]
        return "\n".join([f"table {self.family} {self.name} {{", "\n\n".join(parts), "}", ""])
