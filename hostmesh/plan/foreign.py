"""Judges other programs' nftables: which of their rules drop, mark or translate packets that the mesh needs. Pure.

It reads libnftables' JSON (libnftables-json(5)) as far as it must. A rule that asks for an interface other than lo is
left alone where only what is intercepted could suffer: that travels over lo.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hostmesh.plan.footprint import flags, ports
from hostmesh.plan.surroundings import Listing, Trouble
from hostmesh.policy.settings import Settings

_ALL_BITS = 0xFFFF_FFFF
_JUMPS, _DROPS = ("jump", "goto"), ("drop", "reject")
_TRANSLATES = ("dnat", "redirect", "tproxy")
_HIDES = ("snat", "masquerade")
_NARROW = ("limit", "quota", "ct count", "vmap", "xt")
"""Statements that narrow a rule as matches do; ``xt`` is one of iptables, which nft does not show."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule as packets of a base chain meet it."""

    where: str
    expressions: tuple[Mapping[str, Any], ...]

    def does(self, *statements: str) -> bool:
        return any(word in expression for expression in self.expressions for word in statements)

    @property
    def conditions(self) -> dict[str, tuple[Any, bool]]:
        """What it asks for, by the field's name: ``dport``, ``iifname``, ``ct``…; the value, and whether it is that."""
        found: dict[str, tuple[Any, bool]] = {word: (None, False) for word in _NARROW if self.does(word)}
        for expression in self.expressions:
            if "match" in expression:
                match = expression["match"]
                found[_field(match["left"])] = (match["right"], match["op"] != "!=")
        return found

    def takes(self, port: int) -> bool:
        """Does it ask for this destination port, by name?"""
        value, positive = self.conditions.get("dport", (None, False))
        return positive and _holds(value, port)

    @property
    def elsewhere(self) -> bool:
        """Does it ask for an interface that is not lo?"""
        asked = [self.conditions[name] for name in ("iif", "iifname", "oif", "oifname") if name in self.conditions]
        return any(_holds(value, "lo") != positive for value, positive in asked)

    @property
    def everybody(self) -> bool:
        """Does it ask for nothing but, perhaps, who sends?"""
        return not self.conditions.keys() - {"saddr"}


@dataclass(frozen=True, slots=True)
class _Chain:
    """A base chain with all rules that its packets may meet, in order."""

    where: str
    hook: str
    closed: bool
    rules: tuple[_Rule, ...]


def judge_listing(settings: Settings, listing: Listing) -> Iterator[Trouble]:
    """All that is in the way, chain by chain."""
    for chain in _base_chains(listing):
        if chain.hook in ("input", "output"):
            yield from _closed(settings, chain)
        for rule in chain.rules:
            yield from _dropped(settings, rule)
            if chain.hook != "forward":
                yield from _marked(settings, rule)
                yield from _translated(settings, chain, rule)


def _closed(settings: Settings, chain: _Chain) -> Iterator[Trouble]:
    """A chain that drops what it does not name must name the wire, and lo."""
    if not chain.closed:
        return
    wire, direction = settings.ports.wire, "iifname" if chain.hook == "input" else "oifname"
    accepts = [rule for rule in chain.rules if rule.does("accept")]
    level = "risk" if any(rule.does("xt") for rule in accepts) else "problem"  # iptables may let more pass than is seen
    if not any(rule.takes(wire) or (rule.everybody and not rule.elsewhere) for rule in accepts):
        remedy = f"nft insert rule {chain.where} tcp dport {wire} accept"
        what = f"drops by default, and does not let TCP {wire} pass, by which hosts reach each other"
        yield Trouble("foreign-drop", level, chain.where, what, remedy)
    if not any(_lets_lo_pass(rule) for rule in accepts):
        what = "drops by default, and does not let lo pass, over which every meshed connection goes"
        remedy = f"nft insert rule {chain.where} {direction} lo accept"
        yield Trouble("foreign-drop", level, chain.where, what, remedy)


def _lets_lo_pass(rule: _Rule) -> bool:
    interfaces = rule.conditions.keys() & {"iif", "iifname", "oif", "oifname"}
    return not rule.elsewhere and (bool(interfaces) or rule.everybody)


def _dropped(settings: Settings, rule: _Rule) -> Iterator[Trouble]:
    if not rule.does(*_DROPS) or "saddr" in rule.conditions:
        return
    for port in ports(settings):
        if rule.takes(port.number):
            what = f"drops port {port.number}, which {port.process} needs for {port.purpose}"
            yield Trouble("foreign-drop", "problem", rule.where, what, "take the port out of the rule")


def _marked(settings: Settings, rule: _Rule) -> Iterator[Trouble]:
    ours = {flag.name: flag.bits for flag in flags(settings)}
    for expression in rule.expressions:
        mangle = expression.get("mangle", {})
        if rule.elsewhere or not mangle or _field(mangle["key"]) != "mark" or "ct" in mangle["key"]:
            continue
        touched = _bits(mangle["value"])
        hurt = [name for name, bits in ours.items() if touched & bits]
        if hurt:
            what = f"sets bits of the packet mark that are ours ({', '.join(hurt)}): {touched:#010x}"
            free = _ALL_BITS & ~sum(ours.values())
            remedy = f"change only bits of {free:#010x} there (meta mark set mark and … or …), or set [marks]"
            yield Trouble("foreign-mark", "problem", rule.where, what, remedy)


def _translated(settings: Settings, chain: _Chain, rule: _Rule) -> Iterator[Trouble]:
    if rule.does(*_TRANSLATES) and chain.hook in ("prerouting", "output"):
        ours = [port.number for port in ports(settings) if rule.takes(port.number)]
        open_to_all = not rule.conditions.keys() & {"dport", "daddr", "sport", "set"} and not rule.elsewhere
        if ours or open_to_all:
            which = f"port {ours[0]}" if ours else "every connection"
            what = f"sends {which} elsewhere, also what meshed units call"
            remedy = "name in the rule the addresses or ports that it is for"
            yield Trouble("foreign-nat", "problem", rule.where, what, remedy)
    if rule.does(*_HIDES) and not rule.conditions.keys() & {"saddr", "daddr", "oif", "oifname"}:
        what = "changes the source address of what goes over lo: applications see a false client"
        yield Trouble("foreign-nat", "problem", rule.where, what, "name the interface in the rule: oifname …")


def _base_chains(listing: Listing) -> Iterator[_Chain]:
    rules: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for entry in listing:
        if "rule" in entry:
            rule = entry["rule"]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
    for entry in listing:
        chain = entry.get("chain", {})
        if "hook" in chain:
            met = tuple(_met(rules, (chain["family"], chain["table"], chain["name"])))
            closed = chain.get("policy") == "drop" or any(r.does(*_DROPS) and not r.conditions for r in met)
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            yield _Chain(where, chain["hook"], closed, met)


def _met(rules: Mapping[tuple[str, str, str], list[Mapping[str, Any]]], chain: tuple[str, str, str]) -> Iterator[_Rule]:
    """The rules of a chain, those of the chains that it jumps to in their places, with the jump's own conditions."""
    for rule in rules.get(chain, ()):
        expressions = tuple(expression for expression in rule["expr"] if isinstance(expression, dict))
        yield _Rule(f"{' '.join(chain)} handle {rule['handle']}", expressions)
        asked = tuple(expression for expression in expressions if "match" in expression)
        targets = [expression[word]["target"] for expression in expressions for word in _JUMPS if word in expression]
        for target in targets:
            for met in _met(rules, (*chain[:2], target)):
                yield _Rule(met.where, (*asked, *met.expressions))


def _field(expression: Any) -> str:  # noqa: ANN401 JSON
    """What is looked at: ``dport``, ``iifname``, ``mark``; else the expression's kind."""
    if not isinstance(expression, dict):
        return ""
    if "&" in expression:
        return _field(expression["&"][0])
    kind, detail = next(iter(expression.items()))
    if kind in ("payload", "meta") and isinstance(detail, dict):
        return str(detail.get("field") or detail.get("key") or kind)
    return str(kind)


def _holds(value: Any, wanted: int | str) -> bool:  # noqa: ANN401 JSON
    """Is it in the value: itself, a range, a set of them? A named set (``@name``) is not looked into."""
    if isinstance(value, dict):
        if "set" in value:
            return any(_holds(entry, wanted) for entry in value["set"])
        if "range" in value and isinstance(wanted, int):
            low, high = value["range"]
            return isinstance(low, int) and isinstance(high, int) and low <= wanted <= high
        return False
    return bool(value == wanted)


def _bits(value: Any) -> int:  # noqa: ANN401 JSON
    """The bits of the mark that a new value may change."""
    if isinstance(value, dict) and len(value) == 1:
        ((operator, parts),) = value.items()
        if operator == "meta" and parts.get("key") == "mark":
            return 0
        if operator in ("|", "^", "&") and isinstance(parts, list) and isinstance(parts[1], int):
            return _bits(parts[0]) | (~parts[1] & _ALL_BITS if operator == "&" else parts[1])
    return _ALL_BITS
