"""Turns a wanted table and the listed one into the text of one nft transaction that makes them equal.

`TableState` is what `apply/nft.py` lists (libnftables-json(5)), read here so that reading is a pure function too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hostmesh.plan.ruleset import STRUCTURE, Element, Set, Table, comment_text

_CHUNK = 200  # elements in one command of the transaction: errors stay readable


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as the kernel lists it. rules: their comments in order, by chain. types: key types by set.

    sets: elements by set, keys as rendered. A cgroup that is gone is a number: in no plan, so a difference.
    """

    structure: str
    rules: dict[str, tuple[str, ...]]
    types: dict[str, tuple[str, ...]]
    sets: dict[str, tuple[Element, ...]]


def update(table: Table | None, state: TableState | None) -> tuple[str, str] | None:
    """(what is done, nft text), or None when nothing is to be done. Elements alone where the structure is the same."""
    if table is None:
        return None if state is None else ("delete the table", "delete table inet hostmesh\n")
    if state is None:
        return "load", table.render()
    if state.structure != table.structure or state.rules != _comments(table):
        counts = {item.name: state.sets[item.name] for item in table.sets if _counts(item) and item.name in state.sets}
        drop = f"delete table {table.family} {table.name}\n"
        return "replace", drop + table.with_counts(counts).render()
    done: list[str] = []
    lines: list[str] = []
    for item in table.sets:
        if item.dynamic:
            continue
        wanted, there = set(item.elements), set(state.sets.get(item.name, ()))
        if wanted != there:
            done.append(f"{item.name} +{len(wanted - there)} -{len(there - wanted)}")
            lines += _commands(table, item, wanted, there)
    return ("; ".join(done), "\n".join([*lines, ""])) if done else None


def _counts(item: Set) -> bool:
    return item.dynamic and "counter" in item.options


def _comments(table: Table) -> dict[str, tuple[str, ...]]:
    return {chain.name: tuple(comment_text(rule.comment) for rule in chain.rules) for chain in table.chains}


def _commands(table: Table, item: Set, wanted: set[Element], there: set[Element]) -> Iterator[str]:
    where = f"{table.family} {table.name} {item.name}"
    gone, new = there - wanted, wanted - there
    if gone and ("flags interval" in item.options or any(_stale(element) for element in gone)):
        # A cgroup that is gone can't be named any more, and Linux 6.18 does not find every concatenation with an IPv6
        # network again to delete it. Flush and fill is one transaction too: no packet sees the set empty.
        yield f"flush {'map' if item.data else 'set'} {where}"
        gone, new = set(), wanted
    for verb, elements in (("delete", gone), ("add", new)):
        ordered = sorted(elements)
        for start in range(0, len(ordered), _CHUNK):
            part = ordered[start : start + _CHUNK]
            body = ", ".join(element.render() if verb == "add" else element.key for element in part)
            yield f"{verb} element {where} {{ {body} }}"


def _stale(element: Element) -> bool:
    return element.key.startswith('"') and not element.key.startswith('"mesh.slice/')


def read_listing(listing: dict[str, Any]) -> TableState | None:
    """libnftables' JSON of ``list table``, read; None when it holds no table."""
    items = listing.get("nftables", [])
    if not any("table" in item for item in items):
        return None
    structure = ""
    rules: dict[str, list[str]] = {item["chain"]["name"]: [] for item in items if "chain" in item}
    types = {}
    for found in _sets(listing):
        structure = structure or found.get("comment", "").partition(STRUCTURE)[2]
        types[found["name"]] = _types(found)
    for item in items:
        if "rule" in item:
            rules[item["rule"]["chain"]].append(item["rule"].get("comment", ""))
    comments = {name: tuple(found) for name, found in rules.items()}
    return TableState(structure, comments, types, read_sets(listing))


def read_sets(listing: dict[str, Any]) -> dict[str, tuple[Element, ...]]:
    """The elements by set of any listing, sorted."""
    return {found["name"]: tuple(sorted(_elements(found))) for found in _sets(listing)}


def _sets(listing: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in listing.get("nftables", []):
        if "set" in item or "map" in item:
            yield item.get("set") or item["map"]


def _types(found: dict[str, Any]) -> tuple[str, ...]:
    return tuple(found["type"]) if isinstance(found["type"], list) else (found["type"],)


def _elements(found: dict[str, Any]) -> Iterator[Element]:
    types = _types(found)
    for entry in found.get("elem", []):
        key, value = entry if "map" in found else (entry, None)
        extra = key["elem"] if isinstance(key, dict) and "elem" in key else {"val": key}
        whole = extra["val"]
        parts = whole["concat"] if isinstance(whole, dict) and "concat" in whole else [whole]
        counter = extra.get("counter", {})
        yield Element(
            " . ".join(_key(kind, part) for kind, part in zip(types, parts, strict=True)),
            _key(found["map"], value) if value is not None else "",
            extra.get("comment", ""),
            counter.get("packets", 0),
            counter.get("bytes", 0),
        )


def _key(kind: str, part: Any) -> str:  # noqa: ANN401 JSON
    if isinstance(part, dict) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    if isinstance(part, dict) and "range" in part:
        low, high = part["range"]
        return f"{low}-{high}"
    if kind == "mark" and isinstance(part, int):
        return f"{part:#010x}"
    return f'"{part}"' if kind == "cgroupsv2" else str(part)
