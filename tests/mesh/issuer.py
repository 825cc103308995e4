"""An issuer of tokens: keys of every kind, their set as JSON, tokens that are good and tokens that are not."""

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://id.example.org", "inventory"
_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Key:
    """A key of the issuer, and the algorithm that it is for."""

    kid: str
    alg: str
    private: Private

    def jwk(self) -> dict[str, str]:
        """Its public half (RFC 7517)."""
        public, said = self.private.public_key(), {"kid": self.kid, "alg": self.alg, "use": "sig"}
        match public:
            case rsa.RSAPublicKey():
                numbers = public.public_numbers()
                return {**said, "kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
            case ec.EllipticCurvePublicKey():
                point, size = public.public_numbers(), public.key_size // 8
                curve = f"P-{public.key_size}"
                return {**said, "kty": "EC", "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size)}
            case _:
                return {**said, "kty": "OKP", "crv": "Ed25519", "x": encoded(public.public_bytes_raw())}

    def sign(self, signed: bytes, alg: str = "") -> bytes:
        """By its own algorithm, or by another of its kind."""
        alg = alg or self.alg
        hashed = _HASHES.get(alg[2:], hashes.SHA256())
        match self.private:
            case rsa.RSAPrivateKey() if alg.startswith("PS"):
                return self.private.sign(signed, padding.PSS(padding.MGF1(hashed), padding.PSS.DIGEST_LENGTH), hashed)
            case rsa.RSAPrivateKey():
                return self.private.sign(signed, padding.PKCS1v15(), hashed)
            case ec.EllipticCurvePrivateKey():
                size = self.private.key_size // 8
                both = decode_dss_signature(self.private.sign(signed, ec.ECDSA(hashed)))
                return b"".join(part.to_bytes(size, "big") for part in both)
            case _:
                return self.private.sign(signed)

    def secret(self) -> bytes:
        """The public key as PEM: what an attacker takes for a shared secret."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encoded(data: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(number: int, size: int = 0) -> str:
    return encoded(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def claims(**changed: object) -> dict[str, Any]:
    """Good ones; None takes one out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "nbf": now - 5, "sub": "ann", "role": "buyer"}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def token(key: Key, said: Mapping[str, object] | None = None, header: Mapping[str, object] | None = None) -> str:
    """A token signed by the key, whatever its header says."""
    return made(said, {"kid": key.kid, "alg": key.alg, "typ": "JWT", **(header or {})}, key.sign)


def made(said: Mapping[str, object] | None, header: Mapping[str, object], sign: Callable[[bytes], bytes]) -> str:
    """A token of these parts."""
    parts = (json.dumps(header), json.dumps(claims() if said is None else said))
    signed = ".".join(encoded(part.encode()) for part in parts)
    return f"{signed}.{encoded(sign(signed.encode()))}"


@dataclass
class Issuer:
    """Keys for all algorithms."""

    rs: Key = field(default_factory=lambda: Key("rs", "RS256", rsa.generate_private_key(65537, 2048)))
    ps: Key = field(default_factory=lambda: Key("ps", "PS512", rsa.generate_private_key(65537, 2048)))
    es: Key = field(default_factory=lambda: Key("es", "ES256", ec.generate_private_key(ec.SECP256R1())))
    es384: Key = field(default_factory=lambda: Key("es384", "ES384", ec.generate_private_key(ec.SECP384R1())))
    ed: Key = field(default_factory=lambda: Key("ed", "EdDSA", ed25519.Ed25519PrivateKey.generate()))

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them."""
        return (self.rs, self.ps, self.es, self.es384, self.ed)

    def forged(self) -> list[tuple[str, str, str]]:
        """What, a token that must not be believed, and the word that says why."""
        rs, es, ed, stranger = self.rs, self.es, self.ed, another("rs")
        now = int(time.time())
        secret = partial(hmac.digest, rs.secret(), digest=hashlib.sha256)
        good = token(rs)
        head, body, signature = good.split(".")
        return [
            ("the public key as a shared secret", made(None, {"alg": "HS256", "kid": "rs"}, secret), "algorithm"),
            ("the same, said to be RS256", made(None, {"alg": "RS256", "kid": "rs"}, secret), "signature"),
            *(
                (f"alg {none!r}", made(None, {"alg": none, "kid": "rs"}, lambda _: b""), "algorithm")
                for none in ("none", "None", "NONE", "nOnE", "")
            ),
            ("RS256 without signature", f"{head}.{body}.", "signature"),
            ("no signature at all", f"{head}.{body}", "malformed"),
            (
                "PS256 by a key for RS256",
                made(None, {"alg": "PS256", "kid": "rs"}, lambda s: rs.sign(s, "PS256")),
                "algorithm",
            ),
            (
                "RS512 by a key for RS256",
                made(None, {"alg": "RS512", "kid": "rs"}, lambda s: rs.sign(s, "RS512")),
                "algorithm",
            ),
            ("ES256, the key is RSA", made(None, {"alg": "ES256", "kid": "rs"}, es.sign), "algorithm"),
            ("RS256, the key is EC", made(None, {"alg": "RS256", "kid": "es"}, rs.sign), "algorithm"),
            ("another key under the name", token(stranger), "signature"),
            ("claims changed", f"{head}.{encoded(json.dumps(claims(role='admin')).encode())}.{signature}", "signature"),
            ("another issuer", token(rs, claims(iss="https://evil.example")), "issuer"),
            ("no issuer", token(rs, claims(iss=None)), "issuer"),
            ("another audience", token(rs, claims(aud="orders")), "audience"),
            ("no audience", token(rs, claims(aud=None)), "audience"),
            ("expired", token(rs, claims(exp=now - 61)), "expired"),
            ("without end", token(rs, claims(exp=None)), "malformed"),
            ("not yet valid", token(rs, claims(nbf=now + 120)), "not-yet-valid"),
            ("kid is a path", token(rs, header={"kid": "../../../../dev/null"}), "unknown-key"),
            ("kid is a path to the key", token(rs, header={"kid": "./rs"}), "unknown-key"),
            ("kid is a list", token(rs, header={"kid": ["rs"]}), "malformed"),
            ("jwk", token(stranger, header={"kid": "x", "jwk": stranger.jwk()}), "unknown-key"),
            ("jwk under a known kid", token(stranger, header={"jwk": stranger.jwk()}), "signature"),
            ("jku", token(stranger, header={"jku": "https://evil.example/keys"}), "signature"),
            ("x5u", token(stranger, header={"x5u": "https://evil.example/cert"}), "signature"),
            ("an extension that must be understood", token(rs, header={"crit": ["b64"], "b64": False}), "malformed"),
            ("EdDSA, cut", token(ed)[:-2], "signature"),
            ("no token", "x", "malformed"),
        ]


def another(kid: str, alg: str = "RS256") -> Key:
    """A key that is not in the set, or not yet."""
    if alg == "ES256":
        return Key(kid, alg, ec.generate_private_key(ec.SECP256R1()))
    return Key(kid, alg, rsa.generate_private_key(65537, 2048))


def key_set(keys: Sequence[Key], *others: Mapping[str, object]) -> str:
    """The set of keys, and what else stands in it."""
    return json.dumps({"keys": [*others, *(key.jwk() for key in keys)]})
