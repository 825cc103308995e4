"""Positions in TOML: every key and value is found where it really stands."""

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from hostmesh.errors import Place
from hostmesh.policy.findings import Findings
from hostmesh.policy.source import Node, parse

TEXT = '''\
top = 1  # comment = 2
"quoted.key" = "a # b"
[service]
ports.8080 = "http"
ports.443 = { protocol = "tcp", client_address = 'local' }
many = """
[[not.a.header]]
"""
[[inbound.allow]]
from = [
  "orders",  # ] not the end
  'web',
]
[[inbound.allow]]
from = [["deep"], [{ x = 1 }]]
[inbound.allow.sub]
y = 1979-05-27 07:32:00
[[inbound.allow.rows]]
z = +1_000
'''


def tree(text: str) -> Node:
    findings = Findings()
    node = parse("f", text, findings)
    assert node is not None, findings.diagnostics
    return node


def at(node: Node, *path: str | int) -> Node:
    for step in path:
        node = node.items[step] if isinstance(step, int) else node.table[step]
    return node


def test_places_of_every_kind_of_key_and_value() -> None:
    root = tree(TEXT)
    expected = {
        ("top",): ((1, 1), (1, 7)),
        ("quoted.key",): ((2, 1), (2, 16)),
        ("service",): ((3, 1), (3, 1)),
        ("service", "ports"): ((4, 1), (4, 1)),
        ("service", "ports", "8080"): ((4, 1), (4, 14)),
        ("service", "ports", "443"): ((5, 1), (5, 13)),
        ("service", "ports", "443", "client_address"): ((5, 33), (5, 50)),
        ("service", "many"): ((6, 1), (6, 8)),
        ("inbound", "allow", 0): ((9, 1), (9, 1)),
        ("inbound", "allow", 0, "from", 0): ((11, 3), (11, 3)),
        ("inbound", "allow", 0, "from", 1): ((12, 3), (12, 3)),
        ("inbound", "allow", 1): ((14, 1), (14, 1)),
        ("inbound", "allow", 1, "from", 0, 0): ((15, 10), (15, 10)),
        ("inbound", "allow", 1, "from", 1, 0, "x"): ((15, 22), (15, 26)),
        ("inbound", "allow", 1, "sub"): ((16, 1), (16, 1)),
        ("inbound", "allow", 1, "sub", "y"): ((17, 1), (17, 5)),
        ("inbound", "allow", 1, "rows", 0, "z"): ((19, 1), (19, 5)),
    }
    found = {}
    for path in expected:
        node = at(root, *path)
        found[path] = ((node.key_place.line, node.key_place.column), (node.place.line, node.place.column))
    assert found == expected


def test_windows_line_ends_and_strings_that_end_in_quotes() -> None:
    text = 'a = """x"""""\r\nb = \'\'\'y\'\'\'\'\r\nc = 7\r\n'
    root = tree(text)
    assert [root.table[key].data for key in "abc"] == ['x""', "y'", 7]
    assert [root.table[key].place for key in "abc"] == [Place("f", line, 5) for line in (1, 2, 3)]


def test_what_is_not_toml_has_a_place() -> None:
    findings = Findings()
    assert parse("f", 'a = 1\nb = "x\n', findings) is None
    assert [(d.code, d.place.line) for d in findings.diagnostics] == [("syntax", 2)]


def test_nesting_without_end_is_a_finding() -> None:
    findings = Findings()
    assert parse("f", "a = " + "[" * 100_000, findings) is None
    assert findings.diagnostics[0].code == "syntax"


# Documents whose every value is a token of its own, so that its true place is where the token is found in the text.
LEAVES = ("{n}", '"s{n}"', "'s{n}'", '"""m{n}\n"q" """', "'''l{n}\n[x]'''", '"\\"e{n}, ] }} # "', "-{n}.5", "0x{n}")
Shape = object


def shapes() -> st.SearchStrategy[Shape]:
    leaf = st.sampled_from(LEAVES)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda items: ("list", items)),
            st.lists(inner, max_size=3).map(lambda items: ("table", items)),
        ),
        max_leaves=6,
    )


def write(shape: Shape, numbers: Iterator[int]) -> str:
    if isinstance(shape, str):
        return shape.format(n=next(numbers))
    assert isinstance(shape, tuple)
    kind, items = shape
    if kind == "list":
        return "[ # ] comment\n" + ",\n".join(write(item, numbers) for item in items) + "\n]"
    return "{ " + ", ".join(f"k{next(numbers)} = {write(item, numbers)}" for item in items) + " }"


HEADERS = ("", "[t{n}]\n", "[[a.b]]\n", "[[rows]]\n", '[ "q {n}" . x ]  # c\n', "d{n}.e = {v}\n")


@given(st.lists(st.tuples(st.sampled_from(HEADERS), shapes()), max_size=8))
def test_every_value_is_where_its_token_is(parts: list[tuple[str, Shape]]) -> None:
    numbers = itertools.count(1000)
    text = "".join(
        header.format(n=next(numbers), v=f'"v{next(numbers)}"') + f"k{next(numbers)} = {write(shape, numbers)}\n"
        for header, shape in parts
    )
    offsets = list(itertools.accumulate((len(line) + 1 for line in text.split("\n")), initial=0))

    def check(node: Node, key: str | None) -> None:
        here = text[offsets[node.place.line - 1] + node.place.column - 1 :]
        if key is not None and key.startswith("k"):
            assert text[offsets[node.key_place.line - 1] + node.key_place.column - 1 :].startswith(f"{key} = ")
        if isinstance(node.data, dict):
            for name, entry in node.table.items():
                check(entry, name)
        elif isinstance(node.data, list):
            for entry in node.items:
                check(entry, None)
            assert here.startswith("[")
        elif isinstance(node.data, str):
            token = node.data.lstrip('"')[:5]
            assert here[0] in "\"'"
            assert here.lstrip("\"'\\").startswith(token)
        elif isinstance(node.data, float):
            assert here.startswith(str(node.data))
        else:
            assert here.startswith((str(node.data), hex(int(str(node.data)))))

    for name, entry in tree(text).table.items():
        check(entry, name)


def test_a_byte_order_mark_is_called_by_its_name() -> None:
    findings = Findings()
    assert parse("f", "\ufefftop = 1\n", findings) is None
    assert "byte order mark" in findings.diagnostics[0].message
