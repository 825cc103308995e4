"""Text that leaves the ruleset refers to what is there, and says what it is for."""

import pytest

from hostmesh.plan.ruleset import BadRuleset, Chain, Element, Rule, Set, Table, comment_text

UNITS = Set("units", "meta mark", (Element("0x00000001", comment="a.toml:1"),))


def table(*rules: Rule, sets: tuple[Set, ...] = (UNITS,), more: tuple[Chain, ...] = ()) -> Table:
    return Table("inet", "hostmesh", sets, (Chain("output", rules), *more))


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ("meta mark @unit accept", "unit"),
        ("jump refused", "refused"),
        ("meta mark @units goto nowhere", "nowhere"),
        ("update @counts { meta mark }", "counts"),
    ],
)
def test_a_reference_to_nothing(body: str, missing: str) -> None:
    with pytest.raises(BadRuleset, match=f"refers to {missing}, which is not there"):
        table(Rule(body, "why"))


def test_a_rule_or_element_without_a_reason() -> None:
    with pytest.raises(BadRuleset, match="does not say what it is for: accept"):
        table(Rule("accept", ""))
    with pytest.raises(BadRuleset, match="an element of units does not say"):
        table(Rule("accept", "why"), sets=(Set("units", "meta mark", (Element("0x00000001"),)),))


def test_one_name_one_thing() -> None:
    with pytest.raises(BadRuleset, match="'units' is not a name of its own"):
        table(Rule("accept", "why"), more=(Chain("units", ()),))


def test_comments_hold_what_nft_can_hold() -> None:
    assert comment_text('a"b\\c\nd') == "a?b?c?d"
    long = "é" * 100 + "/web.service.toml:12"
    assert comment_text(long).endswith("é/web.service.toml:12")
    assert len(comment_text(long).encode()) <= 127


def test_structure_is_all_but_elements() -> None:
    rule = Rule("meta mark @units accept", "why")
    other = Set("units", "meta mark", (Element("0x00000002", comment="b.toml:1"),))
    assert table(rule).structure == table(rule, sets=(other,)).structure
    assert table(rule).structure != table(Rule("meta mark @units drop", "why")).structure
    assert table(rule).structure in table(rule).render()
