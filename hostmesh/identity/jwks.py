"""Turns a set of keys (JWKS, RFC 7517) into public keys, each with what algorithms it is for (RFC 8725, 3.1).

A key that is no good is left out, and told; the others count.
"""

import binascii
import json
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostmesh.errors import HostmeshError

MAX_KEYS = 32
_MAX_KID = 256
_RSA_BITS = range(2048, 8193)
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": "ES256", "P-384": "ES384"}


class BadKeySet(HostmeshError):
    """No set of keys, or none in it that could be used."""


class _BadKey(Exception):
    """Why one key is left out."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """kid, alg: empty where it has none. fitting: the algorithms that such a key can be for. spki: base64 DER."""

    kid: str
    alg: str
    fitting: tuple[str, ...]
    spki: str

    def algorithms(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """What it says; else those ``wanted`` of such a key; else the one that is meant by silence (OpenID: RS256)."""
        if self.alg:
            return (self.alg,)
        return tuple(name for name in wanted if name in self.fitting) or self.fitting[:1]


def read(text: str) -> tuple[tuple[PublicKey, ...], tuple[str, ...]]:
    """The keys that can be used, and what is wrong with others. Raises `BadKeySet`."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadKeySet(f"no JSON: {error}") from error
    keys = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(keys, list):
        raise BadKeySet("no set of keys", '{"keys": […]} (RFC 7517, section 5)')
    found, troubles = [], []
    for number, key in enumerate(keys[:MAX_KEYS], 1):
        try:
            one = _key(key)
        except _BadKey as why:
            troubles.append(f"key {number}{_named(key)} is left out: {why}")
        else:
            found += [one] if one else []
    if len(keys) > MAX_KEYS:
        troubles.append(f"{len(keys) - MAX_KEYS} keys are left out: at most {MAX_KEYS} are read")
    if not found:
        raise BadKeySet("; ".join(["it has no key that tokens could be checked by", *troubles]))
    return tuple(found), tuple(troubles)


def _named(key: object) -> str:
    kid = key.get("kid") if isinstance(key, dict) else None
    return f" ({kid[:64]!r})" if isinstance(kid, str) else ""


def _key(said: object) -> PublicKey | None:
    """None: a key for something else, which many sets have."""
    if not isinstance(said, dict):
        raise _BadKey("it is no object")
    operations = said.get("key_ops")
    if said.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    if said.get("kty") == "oct" or "k" in said:
        raise _BadKey("it is a shared secret")
    if "d" in said:
        raise _BadKey("the private key is published with it: everybody could sign by it")
    kid, alg = said.get("kid", ""), said.get("alg", "")
    if not isinstance(kid, str) or not isinstance(alg, str) or len(kid) > _MAX_KID:
        raise _BadKey("kid or alg is no text, or kid is too long")
    try:
        der, fitting = _public(said)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _BadKey(f"it cannot be read: {type(error).__name__} {error}".rstrip()) from error
    if alg and alg not in fitting:
        raise _BadKey(f"it is not for {alg!r}, and could be for {', '.join(fitting)}")
    return PublicKey(kid, alg, fitting, b64encode(der).decode())


def _public(said: Mapping[str, object]) -> tuple[bytes, tuple[str, ...]]:
    """RFC 7518, section 6, and RFC 8037, section 2: as DER. A point that is not on its curve is no key."""
    # Not above: who has no tokens needs none of it.
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    as_der = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    kind, curve = said.get("kty"), said.get("crv")
    if kind == "RSA":
        modulus = _number(said["n"])
        if modulus.bit_length() not in _RSA_BITS:
            raise _BadKey(f"RSA of {modulus.bit_length()} bits: 2048 to 8192 are taken")
        return rsa.RSAPublicNumbers(_number(said["e"]), modulus).public_key().public_bytes(*as_der), _RSA
    if kind == "EC" and isinstance(curve, str) and curve in _CURVES:
        of_curve = ec.SECP256R1() if curve == "P-256" else ec.SECP384R1()
        numbers = ec.EllipticCurvePublicNumbers(_number(said["x"]), _number(said["y"]), of_curve)
        return numbers.public_key().public_bytes(*as_der), (_CURVES[curve],)
    if kind == "OKP" and curve == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(said["x"])).public_bytes(*as_der), ("EdDSA",)
    raise _BadKey(f"kty {kind!r}, crv {curve!r}: RSA, P-256, P-384 and Ed25519 are known")


def _number(text: object) -> int:
    return int.from_bytes(_bytes(text), "big")


def _bytes(text: object) -> bytes:
    """Base64url without padding (RFC 7515, section 2)."""
    if not isinstance(text, str) or len(text) > 2048 or "=" in text or "+" in text or "/" in text:
        raise _BadKey("a part of it is no base64url")
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise _BadKey(f"a part of it is no base64url: {error}") from error
