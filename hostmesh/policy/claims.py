"""Decides whether a token says what a rule asks: the specification. `proxy/core/src/claims.rs` is its twin.

Claims are those of a token that was checked: whose signature, issuer, audience and times are good.
"""

from collections.abc import Mapping, Sequence

from hostmesh.wire.snapshot import TokenMatch


def unlike_token(wanted: TokenMatch, claims: Mapping[str, object]) -> str:
    """What of it does not fit; empty if all does."""
    if wanted.issuer and claims.get("iss") != wanted.issuer:
        return f"the token is of {claims.get('iss')}"
    if wanted.audience and not says(claims.get("aud"), wanted.audience):
        return "the token is for another audience"
    for name, values in wanted.claims:
        found = claim(claims, name)
        if name == "scope" and isinstance(found, str):
            found = found.split(" ")
        if not says(found, values):
            return f"the token's {name} is not {' or '.join(map(repr, values))}"
    return ""


def claim(claims: Mapping[str, object], name: str) -> object:
    """The claim of this name; else, ``realm.role`` being no name of a claim, ``role`` of the object ``realm``."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def says(found: object, values: Sequence[str | int | bool]) -> bool:
    """Is it one of the values, or, as a list, has it one of them?"""
    have = found if isinstance(found, list) else [found]
    return any(_same(one, value) for one in have for value in values)


def _same(found: object, value: str | int | bool) -> bool:
    """Numbers are equal by value, 3.0 is 3; nothing else is equal to another kind of thing."""
    if isinstance(value, bool) or isinstance(found, bool):
        return found is value
    if isinstance(value, int):
        return isinstance(found, int | float) and found == value
    return isinstance(found, str) and found == value
