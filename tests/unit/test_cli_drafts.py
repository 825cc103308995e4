"""Policy text that the command line writes: it passes, says what was seen, and leaves alone what a person wrote."""

import pytest

from hostmesh.cli.drafts import enforced, first_draft, suggested_rules
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.policy.model import Mode, Policy, Protocol
from hostmesh.policy.validate import load
from hostmesh.wire.agent_control import Suggestion

UNIT = UnitName("inventory.service")
FILE = "inventory.service.toml"


def one(text: str) -> Policy:
    (policy,) = load({FILE: text})
    return policy


def test_the_first_draft_has_the_ports_seen_and_refuses_nobody() -> None:
    text = first_draft(UNIT, [("0.0.0.0", 8080), ("::", 8080), ("127.0.0.1", 9000), ("::1", 9000)])
    policy = one(text)
    assert policy.mode is Mode.AUDIT
    assert [(port.number, port.protocol) for port in policy.ports] == [(8080, Protocol.HTTP), (9000, Protocol.TCP)]
    assert [line.endswith("on loopback only") for line in text.splitlines() if line[:1].isdigit()] == [False, True]


def test_a_unit_that_listens_nowhere_gets_a_draft_too() -> None:
    policy = one(first_draft(UNIT, []))
    assert (policy.ports, policy.mode, policy.service) == ((), Mode.AUDIT, "inventory")


@pytest.mark.parametrize(
    "text",
    [
        "[inbound]\nmode = 'audit'  # 'audit'\n",
        '# mode = "audit"\n[inbound]\nmode="audit"',
        "inbound = { mode = 'audit', allow = [] }\n",
        '[service]\nname = "audit"\n[inbound]\n"mode" = "audit"\r\n',
    ],
)
def test_enforcing_changes_one_word(text: str) -> None:
    changed = enforced(FILE, text)
    assert one(changed).mode is Mode.ENFORCE
    at = next(i for i, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b)
    assert changed == text[:at] + "enforce" + text[at + len("audit") :]


@pytest.mark.parametrize("text", ["", "[inbound]\nmode = 'enforce'\n", "[inbound]\n"])
def test_only_audit_can_be_ended(text: str) -> None:
    with pytest.raises(HostmeshError, match="not in audit mode"):
        enforced(FILE, text)


def test_suggested_rules_let_in_exactly_those_seen() -> None:
    rules = suggested_rules(
        [
            Suggestion("orders", "spiffe://mesh.local/unit/orders", "198.18.0.1", 8080, ["GET", "POST"], 12),
            Suggestion("orders", "spiffe://mesh.local/unit/orders", "198.18.0.1", 5432, [], 1),
            Suggestion("plaintext", "plaintext", "198.18.0.9", 8080, ["GET"], 3),
            Suggestion("plaintext", "plaintext", "127.0.0.1", 8080, [], 1),
            Suggestion("plaintext", "plaintext", "198.18.0.2", 5432, [], 1),
            Suggestion("plaintext", "plaintext", "2001:2::9", 8080, [], 1),
        ],
        own=["198.18.0.2"],
    )
    text = '[service.ports]\n8080 = "http"\n5432 = "tcp"\n[inbound]\nmode = "audit"\n'
    policy = one(enforced(FILE, text, rules))
    assert [(rule.callers, rule.ports, rule.methods) for rule in policy.allow] == [(("orders",), (5432, 8080), ())]
    assert [(rule.sources, rule.ports) for rule in policy.plaintext] == [
        (("198.18.0.9/32",), (8080,)),
        (("local",), (5432, 8080)),
        (("2001:2::9/128",), (8080,)),
    ]
    assert "# seen 13 times, last from 198.18.0.1" in rules
    assert '# methods = ["GET", "POST"]' in rules
