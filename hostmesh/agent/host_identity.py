"""Turns the host's identity files into credentials, and new certificates into files.

`STATE/identity/` holds `host.key`, `host.crt` (chain, leaf first) and `bundle.pem`, all 0600. A renewal writes the new
key as `host.key.next`, then the chain, then renames the key: killed at any step, `load` finds a pair that fits.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hostmesh.apply.files import Files, sync
from hostmesh.errors import HostmeshError
from hostmesh.identity import svid
from hostmesh.identity.svid import Svid

_PEM = serialization.Encoding.PEM
_PRIVATE = Files(mode=0o600)
_PENDING = "join.key"


class IdentityError(HostmeshError):
    """The host's identity is not there, or is damaged."""


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The host's SVID as TLS wants it: PEM key, chain and trust bundle; and what the certificate says."""

    key: bytes
    chain: bytes
    bundle: bytes
    said: Svid

    @property
    def host(self) -> str:
        """The host's name in the mesh."""
        return self.said.spiffe_id.path.partition("/")[2]

    @property
    def trust_domain(self) -> str:
        """The mesh's trust domain."""
        return self.said.spiffe_id.trust_domain


def new_request() -> tuple[bytes, str]:
    """A new P-256 key (PEM) and its request (base64 DER). The request names nobody: the controller knows who asks."""
    return _request(ec.generate_private_key(ec.SECP256R1()))


def pending_request(folder: Path) -> tuple[bytes, str]:
    """The same for a join, of a key that is kept until there was an answer: a token opens for the key that used it."""
    pending = folder / _PENDING
    try:
        kept = serialization.load_pem_private_key(pending.read_bytes(), None)
    except FileNotFoundError:
        kept = None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # a key with a password is a TypeError
        raise IdentityError(f"{pending} cannot be read: {error}", "remove it, and ask for a new token") from error
    if isinstance(kept, ec.EllipticCurvePrivateKey):
        return _request(kept)
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    key, csr = new_request()
    _PRIVATE.write(str(pending), key.decode())
    return key, csr


def forget_pending(folder: Path) -> None:
    """The answer is there, and saved."""
    _PRIVATE.remove(str(folder / _PENDING))


def _request(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, str]:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, base64.b64encode(request.public_bytes(serialization.Encoding.DER)).decode()


def save(folder: Path, key: bytes, chain: Sequence[str], bundle: Sequence[str]) -> HostIdentity:
    """Writes a new identity (chain and bundle: base64 DER); durable when this returns."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    chain_pem, bundle_pem = _pem(chain), _pem(bundle)
    identity = _checked(key, chain_pem, bundle_pem, folder)
    for name, pem in (("host.key.next", key), ("bundle.pem", bundle_pem), ("host.crt", chain_pem)):
        _PRIVATE.write(str(folder / name), pem.decode())
    (folder / "host.key.next").replace(folder / "host.key")
    sync(folder)
    return identity


def must_be_valid(chain: Sequence[str], now: datetime) -> None:
    """Raises `IdentityError` for a certificate that is not valid now: saved, it would lock the host out."""
    if not chain:
        raise IdentityError("the controller sent no certificate")
    leaf = x509.load_pem_x509_certificate(_pem(chain[:1]))
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if not begins <= now < ends:
        raise IdentityError(
            f"the controller signs for {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, here it is "
            f"{now:%Y-%m-%d %H:%M}: not taken",
            "is the clock right, here and on the controller's host? timedatectl",
        )


def save_bundle(folder: Path, bundle: Sequence[str]) -> bytes:
    """Writes the trust bundle when it is not the one that is there; the PEM text."""
    pem = _pem(bundle)
    if not pem:
        raise IdentityError("the controller sent an empty trust bundle; the one of before is kept")
    if (folder / "bundle.pem").read_bytes() != pem:
        _PRIVATE.write(str(folder / "bundle.pem"), pem.decode())
    return pem


def load(folder: Path) -> HostIdentity:
    """Reads the identity; finishes a renewal that was cut short."""
    try:
        chain, bundle = (folder / "host.crt").read_bytes(), (folder / "bundle.pem").read_bytes()
        following = folder / "host.key.next"
        if following.exists() and _fits(following.read_bytes(), chain):
            following.replace(folder / "host.key")
        return _checked((folder / "host.key").read_bytes(), chain, bundle, folder)
    except FileNotFoundError as error:
        raise IdentityError(f"this host has no identity: {error.filename} is missing", "hostmesh join TOKEN") from error
    except OSError as error:
        raise IdentityError(f"the host's identity cannot be read: {error}") from error


def _checked(key: bytes, chain: bytes, bundle: bytes, folder: Path) -> HostIdentity:
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        x509.load_pem_x509_certificates(bundle)
    except ValueError as error:
        raise IdentityError(f"a certificate in {folder} is damaged: {error}", "join again with a new token") from error
    if not _fits(key, chain):
        raise IdentityError(f"key and certificate in {folder} do not belong together", "join again with a new token")
    return HostIdentity(key, chain, bundle, svid.read(leaf))


def _fits(key: bytes, chain: bytes) -> bool:
    try:
        private = serialization.load_pem_private_key(key, None)
        return private.public_key() == x509.load_pem_x509_certificate(chain).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):  # a key with a password is a TypeError
        return False


def _pem(chain: Sequence[str]) -> bytes:
    try:
        found = [x509.load_der_x509_certificate(base64.b64decode(text, validate=True)) for text in chain]
    except ValueError as error:
        raise IdentityError(f"the controller sent a certificate that cannot be read: {error}") from error
    return b"".join(certificate.public_bytes(_PEM) for certificate in found)
