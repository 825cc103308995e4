"""`[[inbound.jwt]]` and `jwt = {}` in rules: what is read, and what is said about what cannot be."""

import pytest

from hostmesh.errors import PolicyError
from hostmesh.policy import schema
from hostmesh.policy.keys import Key
from hostmesh.policy.model import InboundRule, Policy, TokenIssuer, TokenMatch
from hostmesh.policy.validate import load

FILE = "inventory.service.toml"
PORTS = '[service.ports]\n8080 = "http"\n'
JWT = {"issuer": '"https://id.example.org"', "audience": '"inventory"', "jwks": '"https://id.example.org/keys"'}


def jwt(**changed: str) -> str:
    keys = {**JWT, **changed}
    return "[[inbound.jwt]]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items() if value)


def rule(asked: str) -> str:
    return f'[[inbound.allow]]\nfrom = ["a"]\njwt = {asked}\n'


def read(text: str) -> Policy:
    (policy,) = load({FILE: PORTS + text})
    return policy


def test_everything_that_can_be_said() -> None:
    text = jwt(
        audience='["inventory", "stock"]',
        jwks='"/etc/keys.json"',
        token='"header:X-Token"',
        forward="false",
        leeway='"10s"',
        algorithms='["PS256"]',
        headers='{ X-User = "sub", x-org = "org.id" }',
    )
    asked = (
        '{ issuer = "https://id.example.org", audience = "stock", '
        'claims = { role = ["a", "b"], realm.level = 3, ok = true } }'
    )
    policy = read(text + rule(asked) + "audit = true\n")
    (issuer,) = policy.jwt
    assert issuer == TokenIssuer(
        issuer.place,
        "https://id.example.org",
        ("inventory", "stock"),
        "/etc/keys.json",
        "header:x-token",
        forward=False,
        leeway_ms=10_000,
        algorithms=("PS256",),
        headers=(("x-org", "org.id"), ("x-user", "sub")),
    )
    (allow,) = policy.allow
    assert allow.jwt
    claims = (("ok", (True,)), ("realm.level", (3,)), ("role", ("a", "b")))
    expected = TokenMatch(allow.jwt.place, "https://id.example.org", ("stock",), claims)
    assert allow == InboundRule(allow.place, ("a",), jwt=expected, audit=True)


def test_silence() -> None:
    policy = read(jwt() + rule("{}"))
    (issuer,) = policy.jwt
    assert (issuer.token, issuer.forward, issuer.leeway_ms) == ("header:authorization", True, 60_000)
    assert policy.allow[0].jwt == TokenMatch(policy.allow[0].jwt.place) if policy.allow[0].jwt else False
    assert not policy.allow[0].audit


BAD = [
    (jwt(issuer=""), "[[inbound.jwt]] lacks 'issuer'"),
    (jwt(audience=""), "[[inbound.jwt]] lacks 'audience'"),
    (jwt(jwks=""), "[[inbound.jwt]] lacks 'jwks'"),
    (jwt(issuer='""'), "is empty"),
    (jwt(audience="[]"), "an empty list fits no token"),
    (jwt(jwks='"http://id.example.org/keys"'), "keys by http can be exchanged on the way"),
    (jwt(jwks='"keys.json"'), "neither an https URL nor an absolute path"),
    (jwt(jwks='"ftp://id.example.org/keys"'), "neither an https URL nor an absolute path"),
    (jwt(jwks='"https://user@id.example.org/keys"'), "neither an https URL nor an absolute path"),
    (jwt(jwks='"https://id.example.org/a b"'), "neither an https URL nor an absolute path"),
    (jwt(jwks='"https://[::1/keys"'), "is not a URL"),
    (jwt(token='"query:access_token"'), "in every log on the way"),
    (jwt(token='"authorization"'), "is no place of a token"),
    (jwt(token='"cookie:a b"'), "is no place of a token"),
    (jwt(token='"cookie:sid"', forward="false"), "a cookie goes on with the others"),
    (jwt(algorithms='["none"]'), "'none' is none of"),
    (jwt(algorithms='["HS256"]'), "'HS256' is none of"),
    (jwt(headers='{ host = "sub" }'), "header 'host' says something else already"),
    (jwt(headers='{ Authorization = "sub" }'), "header 'authorization' says something else already"),
    (jwt(headers='{ content_length = "sub" }'), "says something else already"),
    (jwt(headers='{ x-hostmesh-peer = "sub" }'), "says something else already"),
    (jwt(headers='{ x-a = "sub", X-A = "sub" }'), "header 'x-a' stands here twice"),
    (jwt(headers='{ "x a" = "sub" }'), "is not a header's name"),
    (jwt() + jwt(), "issuer 'https://id.example.org' stands here twice"),
    (rule("{}"), "no token is believed"),
    (jwt() + rule('{ issuer = "https://id.example.com" }'), "no [[inbound.jwt]] has issuer"),
    (jwt() + rule('{ audience = "inventry" }'), "no token for 'inventry' is believed"),
    (jwt() + rule("{ claims = {} }"), "an empty table asks for nothing"),
    (jwt() + rule("{ claims = { role = [] } }"), "an empty list fits no claim"),
    (jwt() + rule("{ claims = { level = 1.5 } }"), "is no value of a claim"),
    (jwt() + rule("{ claims = { level = 9007199254740993 } }"), "is no value of a claim"),
    (jwt() + rule("{ claims = { role = [['a']] } }"), "is no value of a claim"),
    (jwt() + rule("{ claim = { role = 'a' } }"), "unknown key 'claim'"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[says for _, says in BAD])
def test_what_cannot_be_is_said_once(text: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read(text)
    (found,) = caught.value.diagnostics
    assert says in found.message and found.place.line > 2


def test_a_token_is_read_on_ports_that_are_read_only() -> None:
    with pytest.raises(PolicyError) as caught:
        load({FILE: '[service.ports]\n5432 = "tcp"\n' + jwt() + rule("{}")})
    assert "need a port that speaks http" in str(caught.value)


@pytest.mark.parametrize("key", [*schema.JWT.keys, *schema.TOKEN.keys], ids=lambda key: key.name)
def test_the_examples_of_the_reference_are_right(key: Key) -> None:
    if key in schema.TOKEN.keys:
        read(jwt() + rule(f"{{ {key.example} }}"))
    else:
        name, _, value = key.example.partition(" = ")
        read(jwt(**{name: value}))
