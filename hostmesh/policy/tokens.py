"""Reads `[[inbound.jwt]]`, whose tokens a unit believes, and what rules ask of a token: `jwt = { … }`."""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from hostmesh.names import BadName
from hostmesh.policy import schema
from hostmesh.policy.findings import Code, nearest
from hostmesh.policy.model import ClaimValue, TokenIssuer, TokenMatch
from hostmesh.policy.read import Reader
from hostmesh.policy.source import Node
from hostmesh.policy.words import header

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_URL = re.compile(r"[\x21-\x7e]+\Z")
_MAX_NUMBER = 2**53 - 1  # beyond it numbers of JSON are not exact (RFC 8259, section 6)
_NOT_FOR_CLAIMS = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade"),
        *("proxy-connection", "http2-settings", "expect", "authorization", "cookie", "traceparent", "tracestate"),
        "x-forwarded-client-cert",
    }
)
"""Header fields by which messages end, or that say something already."""


def issuers(read: Reader, node: Node | None) -> tuple[TokenIssuer, ...]:
    """The ``[[inbound.jwt]]`` of a policy: each issuer once."""
    found: dict[str, TokenIssuer] = {}
    for item in read.tables(node, schema.JWT.name):
        table = read.table(item, schema.JWT)
        must = [key for key in schema.JWT.keys if key.default == "must be given"]
        for key in [key for key in must if key.name not in table]:
            read.findings.add(
                Code.MISSING, item.place, f"[[{schema.JWT.name}]] lacks {key.name!r}", f"for example: {key.example}"
            )
        one = TokenIssuer(
            item.place,
            _text(read, table.get("issuer")),
            _audience(read, table.get("audience")),
            _jwks(read, table.get("jwks"), plain=read.boolean(table.get("insecure_http"), False)),
            _token(read, table.get("token")),
            read.boolean(table.get("forward"), True),
            read.duration_ms(table.get("leeway"), 60_000),
            tuple(read.choice(word, "", ALGORITHMS) for word, _ in read.strings(table.get("algorithms"))),
            _headers(read, table.get("headers")),
        )
        if not one.forward and one.token.startswith("cookie:"):
            read.bad(table["forward"], "a cookie goes on with the others", "leave forward out")
        if one.issuer in found:
            place = table["issuer"].place if "issuer" in table else item.place
            message = f"issuer {one.issuer!r} stands here twice: {found[one.issuer].place}"
            read.findings.add(Code.DUPLICATE, place, message, "one [[inbound.jwt]] an issuer")
        found.setdefault(one.issuer, one)
    return tuple(found.values())


def token_match(read: Reader, node: Node | None, believed: Sequence[TokenIssuer]) -> TokenMatch | None:
    """A rule's ``jwt``. What it asks must be something that one of the unit's issuers can say."""
    if node is None:
        return None
    table = read.table(node, schema.TOKEN)
    if not believed:
        hint = "say whose tokens are believed, in [[inbound.jwt]]"
        read.findings.add(Code.BAD_VALUE, node.key_place, "no token is believed", hint)
        return None
    issuer = _text(read, table.get("issuer"))
    names = [one.issuer for one in believed]
    if issuer and issuer not in names:
        read.bad(table["issuer"], f"no [[inbound.jwt]] has issuer {issuer!r}", nearest(issuer, names))
    audience = _audience(read, table.get("audience"))
    known = {one for each in believed if issuer in ("", each.issuer) for one in each.audience}
    for one in audience:
        if known and one not in known:
            hint = nearest(one, sorted(known)) or f"one of: {', '.join(sorted(known))}"
            read.bad(table["audience"], f"no token for {one!r} is believed: it is no audience in [[inbound.jwt]]", hint)
    return TokenMatch(node.place, issuer, audience, _claims(read, table.get("claims")))


def _text(read: Reader, node: Node | None) -> str:
    text = read.string(node, "")
    if node is not None and isinstance(node.data, str) and not 0 < len(text) <= 1024:
        read.bad(node, "is empty, or longer than 1024 characters")
    return text


def _audience(read: Reader, node: Node | None) -> tuple[str, ...]:
    if node is not None and isinstance(node.data, str):
        return (_text(read, node),)
    if node is not None and isinstance(node.data, list) and not node.items:
        read.bad(node, "an empty list fits no token", 'for example: audience = "inventory"')
    return tuple(_text(read, item) for item, _ in read.strings(node))


def _jwks(read: Reader, node: Node | None, *, plain: bool) -> str:
    """A URL, or an absolute path."""
    text = read.string(node, "")
    if node is None or not text or text.startswith("/"):
        return text
    try:
        url = urlsplit(text)
        is_good = bool(url.hostname) and url.username is None and not url.fragment and url.port != 0
    except ValueError:
        read.bad(node, f"{text!r} is not a URL", "for example: https://id.example.org/keys")
        return text
    if url.scheme == "http" and not plain:
        hint = "use https, or say insecure_http = true: then whoever is on the way decides which tokens are good"
        read.bad(node, "keys by http can be exchanged on the way", hint)
    elif url.scheme not in ("http", "https") or not is_good or not _URL.match(text):
        read.bad(node, f"{text!r} is neither an https URL nor an absolute path", "https://id.example.org/keys")
    return text


def _token(read: Reader, node: Node | None) -> str:
    text = read.string(node, "header:authorization")
    kind, _, name = text.partition(":")
    if node is not None and isinstance(node.data, str):
        hint = 'for example "header:x-token" or "cookie:session"'
        if kind == "query":
            read.bad(node, "a token in a query is in every log on the way (RFC 6750, section 5.3)", hint)
        elif kind not in ("header", "cookie") or not _COOKIE.match(name):
            read.bad(node, f"{text!r} is no place of a token", hint)
    return text.lower() if kind == "header" else text


def _headers(read: Reader, node: Node | None) -> tuple[tuple[str, str], ...]:
    if node is None or read.typed(node, dict) is None:
        return ()
    found: dict[str, str] = {}
    for name, entry in node.table.items():
        claim = _text(read, entry)
        try:
            lower, _ = header(name, "x")
        except BadName as error:
            read.findings.add(Code.BAD_VALUE, entry.key_place, error.message, error.hint)
            continue
        plain = lower.replace("_", "-")
        if plain in _NOT_FOR_CLAIMS or plain.startswith("x-hostmesh-"):
            message = f"header {lower!r} says something else already"
            read.findings.add(Code.BAD_VALUE, entry.key_place, message, "for example: x-user")
        if lower in found:
            message = f"header {lower!r} stands here twice"
            read.findings.add(Code.DUPLICATE, entry.key_place, message, "case does not count")
        found[lower] = claim
    return tuple(sorted(found.items()))


def _claims(read: Reader, node: Node | None, within: str = "") -> tuple[tuple[str, tuple[ClaimValue, ...]], ...]:
    """By name; ``realm.role = "x"`` and ``"realm.role" = "x"`` are one."""
    if node is None or read.typed(node, dict) is None:
        return ()
    found: list[tuple[str, tuple[ClaimValue, ...]]] = []
    for key, entry in node.table.items():
        name = f"{within}{key}"
        if isinstance(entry.data, dict):
            found += _claims(read, entry, f"{name}.")
            continue
        values = tuple(_value(read, item) for item in (entry.items if isinstance(entry.data, list) else [entry]))
        if not values:
            read.bad(entry, "an empty list fits no claim", "leave the claim out if anything shall fit")
        found.append((name, values))
    if not node.table:
        read.bad(node, "an empty table asks for nothing", "leave the key out")
    return tuple(sorted(found))


def _value(read: Reader, node: Node) -> ClaimValue:
    value = node.data
    if isinstance(value, str | bool) or (type(value) is int and abs(value) <= _MAX_NUMBER):
        return value
    read.bad(node, f"{node.kind} is no value of a claim", "text, true, false or a whole number up to 2^53")
    return ""
