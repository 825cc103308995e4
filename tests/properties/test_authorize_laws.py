"""Laws of the specification that no single vector can show: order, monotony, and that ambiguity never opens."""

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from hostmesh.policy.authorize import BadToken, Peer, Plaintext, Request, Verdict, inbound
from hostmesh.policy.paths import AmbiguousPath, normal_path
from hostmesh.wire.snapshot import InboundRule, PlaintextRule, Port, TokenMatch, Unit

ID = "spiffe://mesh.local/unit/"
CALLERS = st.sampled_from(["a", "a", "b", "self"]).map(lambda name: Peer(ID + name))
STRANGERS = st.builds(Plaintext, st.sampled_from(["198.18.0.1", "2001:2::1"]), st.booleans())
PATHS = st.sampled_from(["/", "/x", "/x/y", "/%78", "/x/../y", "/x//y", "*", "/x%2fy"])
TOKENS = st.sampled_from([None, None, BadToken("expired"), {"iss": "i"}, {"iss": "i", "role": ["x", "y"]}])
ASKS = st.builds(Request, st.sampled_from(["GET", "get", "POST"]), PATHS, st.just(()) | st.just((("k", "v"),)), TOKENS)
REQUESTS = st.none() | ASKS
RULES = st.builds(
    InboundRule,
    rule=st.integers(1, 99).map(lambda line: f"u.service.toml:{line}"),
    callers=st.sampled_from([[ID + "*"], [ID + "a"], [ID + "a", ID + "b"]]),
    ports=st.sampled_from([[], [80], [81]]),
    methods=st.sampled_from([[], ["GET"], ["POST"]]),
    paths=st.sampled_from([[], ["/x"], ["/x/*"], ["/*"]]),
    headers=st.sampled_from([[], [], [("k", "v")]]),
    jwt=st.sampled_from([None, None, TokenMatch(), TokenMatch(claims=[("role", ["x"])])]),
    audit=st.sampled_from([False, False, True]),
)
PLAINTEXT = st.builds(
    PlaintextRule,
    rule=st.just("u.service.toml:50"),
    sources=st.sampled_from([["local"], ["198.18.0.0/24"], ["::/0", "local"]]),
    ports=st.sampled_from([[80], [80, 81]]),
    paths=st.sampled_from([[], ["/x"]]),
)
UNITS = st.builds(
    Unit,
    unit=st.just("u.service"), number=st.just(1), spiffe_id=st.just(ID + "self"),
    sni=st.just("u"), service=st.just("u"),
    ports=st.just([Port(80, "http", "auto"), Port(81, "tcp", "auto")]), deliver=st.just(["127.0.0.1"]),
    mode=st.just("enforce"), allow=st.lists(RULES, max_size=4), deny=st.lists(RULES, max_size=2),
    plaintext=st.lists(PLAINTEXT, max_size=2), rule_default=st.just("u.service.toml:no-allow"), outbound=st.none(),
    rule_outbound_default=st.just(""), access_log=st.just("none"), trace=st.just(0.0),
)  # fmt: skip
REFUSALS = {Verdict.DENY, Verdict.BAD_PATH, Verdict.NO_TOKEN, Verdict.BAD_TOKEN}
ASKED = (CALLERS | STRANGERS, st.sampled_from([80, 80, 81, 82]), REQUESTS)


def changed(unit: Unit, **fields: object) -> Unit:
    return Unit(**{**{name: getattr(unit, name) for name in unit.__struct_fields__}, **fields})


def changed_rule(rule: InboundRule, *, audit: bool) -> InboundRule:
    return msgspec.structs.replace(rule, audit=audit)


@given(st.data(), UNITS, *ASKED)
def test_the_order_of_rules_is_nothing_to_who_may(
    data: st.DataObject, unit: Unit, caller: Peer | Plaintext, port: int, request: Request | None
) -> None:
    """But for a request not yet read: the first rule that needs it asks for it."""
    moved = changed(
        unit,
        allow=data.draw(st.permutations(unit.allow)),
        deny=data.draw(st.permutations(unit.deny)),
        plaintext=data.draw(st.permutations(unit.plaintext)),
    )
    before, after = (inbound(u, caller, port, request).verdict for u in (unit, moved))
    if Verdict.ASKS_REQUEST not in (before, after):
        assert before == after or {before, after} <= REFUSALS


@given(UNITS, RULES, *ASKED)
def test_one_more_deny_never_opens(
    unit: Unit, rule: InboundRule, caller: Peer | Plaintext, port: int, request: Request | None
) -> None:
    before = inbound(unit, caller, port, request).verdict
    after = inbound(changed(unit, deny=[*unit.deny, rule]), caller, port, request).verdict
    assert after is not Verdict.ALLOW or before is Verdict.ALLOW


@given(UNITS, RULES, *ASKED)
def test_one_more_allow_never_closes(
    unit: Unit, rule: InboundRule, caller: Peer | Plaintext, port: int, request: Request | None
) -> None:
    before = inbound(unit, caller, port, request).verdict
    after = inbound(changed(unit, allow=[*unit.allow, rule]), caller, port, request).verdict
    assert before is not Verdict.ALLOW or after is Verdict.ALLOW


@settings(max_examples=300)
@given(UNITS, st.lists(RULES, min_size=1, max_size=2), ASKS)
def test_what_the_connection_decides_no_request_changes(unit: Unit, deny: list[InboundRule], request: Request) -> None:
    everybody = InboundRule("u.service.toml:1", [ID + "*"])
    open_but_for_denials = changed(unit, allow=[*unit.allow, everybody], deny=deny)
    early = inbound(open_but_for_denials, Peer(ID + "a"), 80, None)
    late = inbound(open_but_for_denials, Peer(ID + "a"), 80, request)
    if early.verdict is not Verdict.ASKS_REQUEST:
        assert late.verdict is early.verdict


@given(UNITS, *ASKED)
def test_audit_decides_the_same_and_lets_pass(
    unit: Unit, caller: Peer | Plaintext, port: int, request: Request | None
) -> None:
    strict = inbound(unit, caller, port, request)
    audit = inbound(changed(unit, mode="audit"), caller, port, request)
    assert audit.rule == strict.rule
    softened = strict.verdict in REFUSALS and port != 82
    assert audit.verdict is (Verdict.AUDIT_DENY if softened else strict.verdict)


@given(UNITS, *ASKED)
def test_a_rule_in_audit_decides_nothing_and_is_told_where_it_would(
    unit: Unit, caller: Peer | Plaintext, port: int, request: Request | None
) -> None:
    decision = inbound(unit, caller, port, request)
    in_force = {kind: [rule for rule in getattr(unit, kind) if not rule.audit] for kind in ("allow", "deny")}
    without = inbound(changed(unit, **in_force), caller, port, request)
    if decision.verdict is Verdict.ASKS_REQUEST:
        return
    assert (decision.verdict, decision.rule) == (without.verdict, without.rule)
    one_more = {
        kind: [changed_rule(rule, audit=rule.audit and rule.rule != decision.audited) for rule in getattr(unit, kind)]
        for kind in ("allow", "deny")
    }
    if decision.audited:
        then = inbound(changed(unit, **one_more), caller, port, request).verdict
        assert (then is Verdict.ALLOW) != (decision.verdict is Verdict.ALLOW)


@given(UNITS, CALLERS, st.sampled_from([80, 81]), ASKS)
def test_a_token_that_is_not_good_opens_no_more_than_none(
    unit: Unit, caller: Peer, port: int, request: Request
) -> None:
    bad, none = (inbound(unit, caller, port, replace(request, token=token)) for token in (BadToken("x"), None))
    assert (bad.verdict is Verdict.ALLOW) == (none.verdict is Verdict.ALLOW)
    assert bad.verdict is not Verdict.NO_TOKEN and none.verdict is not Verdict.BAD_TOKEN


@given(st.text(st.sampled_from("/.%2fFeE5cC;x\\?#A\x00 é"), max_size=12))
def test_a_normal_form_is_its_own_and_nothing_climbs(text: str) -> None:
    try:
        normal = normal_path("/" + text)
    except AmbiguousPath:
        return
    assert normal_path(normal) == normal
    assert not {".", "..", ""} & set(normal.split("/")[1:-1])
    assert "\\" not in normal and "%2F" not in normal and "%2f" not in normal
