"""Sets of keys: what is read of them, what is left out and why, and that no set harms."""

import json
from base64 import b64decode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.identity.jwks import MAX_KEYS, BadKeySet, read
from tests.mesh.issuer import Issuer, Key, key_set

ISSUER = Issuer()
RS, ES, ED = ISSUER.rs.jwk(), ISSUER.es.jwk(), ISSUER.ed.jwk()


def left_out(*keys: object) -> str:
    found, troubles = read(key_set([ISSUER.ed], *keys))  # type: ignore[arg-type]
    assert [key.kid for key in found] == ["ed"], "the good one counts"
    return "; ".join(troubles)


def test_every_kind_is_read_with_what_it_is_for() -> None:
    found, troubles = read(key_set(ISSUER.keys))
    assert not troubles
    for key, own in zip(found, ISSUER.keys, strict=True):
        assert (key.kid, key.algorithms(())) == (own.kid, (own.alg,))
        assert load_der_public_key(b64decode(key.spki)) == own.private.public_key()


@pytest.mark.parametrize(
    ("jwk", "wanted", "algorithms"),
    [
        (RS, ("PS256",), ("RS256",)),
        ({**RS, "alg": None}, (), ("RS256",)),
        ({**RS, "alg": None}, ("PS256", "ES256"), ("PS256",)),
        ({**ES, "alg": None}, ("PS256",), ("ES256",)),
        ({**ED, "alg": None}, (), ("EdDSA",)),
    ],
)
def test_a_key_that_does_not_say_it_is_for_what_policy_says_of_its_kind(
    jwk: dict[str, Any], wanted: tuple[str, ...], algorithms: tuple[str, ...]
) -> None:
    jwk = {name: value for name, value in jwk.items() if value is not None}
    [key], _ = read(json.dumps({"keys": [jwk]}))
    assert key.algorithms(wanted) == algorithms


SMALL = Key("small", "RS256", rsa.generate_private_key(65537, 1024)).jwk()
P521 = {**ES, "crv": "P-521", "alg": "ES512"}


@pytest.mark.parametrize(
    ("jwk", "why"),
    [
        (SMALL, "RSA of 1024 bits"),
        (P521, "RSA, P-256, P-384 and Ed25519 are known"),
        ({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}, "a shared secret"),
        ({**RS, "d": "AQAB"}, "the private key is published"),
        ({**RS, "alg": "ES256"}, "it is not for 'ES256'"),
        ({**RS, "alg": "none"}, "it is not for 'none'"),
        ({**RS, "alg": ["RS256"]}, "is no text"),
        ({**RS, "kid": 7}, "is no text"),
        ({**RS, "n": RS["n"] + "="}, "no base64url"),
        ({**RS, "n": 7}, "no base64url"),
        ({**RS, "e": "AA"}, "cannot be read"),
        ({"kty": "RSA"}, "cannot be read: KeyError 'n'"),
        ({**ES, "x": ES["y"]}, "cannot be read"),
        ({**ES, "crv": "secp256k1"}, "are known"),
        ({**ES, "crv": ["P-256"]}, "are known"),
        ({**ED, "x": "AAAA"}, "cannot be read"),
        ({}, "are known"),
        (7, "it is no object"),
        (None, "it is no object"),
    ],
)
def test_a_key_that_is_no_good_is_left_out_and_told(jwk: object, why: str) -> None:
    assert why in left_out(jwk)


def test_keys_for_something_else_are_no_trouble() -> None:
    assert not left_out({**RS, "use": "enc"}, {**RS, "key_ops": ["encrypt"]})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": {}}', '{"keys": []}', "<html>", "[" * 100_000, '{"keys": [7]}']
)
def test_what_is_no_set_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(BadKeySet):
        read(text)


def test_a_set_is_bounded() -> None:
    found, troubles = read(key_set([ISSUER.ed] * (MAX_KEYS + 5)))
    assert len(found) == MAX_KEYS and troubles == ("5 keys are left out: at most 32 are read",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([RS, ES, ED]),
    st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops"]),
    JSON,
)
def test_no_value_of_a_key_harms(jwk: dict[str, str], name: str, value: object) -> None:
    found, _ = read(key_set([ISSUER.ed], {**jwk, name: value}))
    assert found[-1].kid == "ed"


@given(st.text(max_size=40))
def test_no_text_harms(text: str) -> None:
    with pytest.raises(BadKeySet):
        read(text)
