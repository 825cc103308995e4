"""Turns templates into signed certificates: root, intermediate, SVIDs.

The root signs intermediates and nothing else: its key can be kept elsewhere. The active slot's intermediate signs every
SVID; what is trusted is the roots of all slots, so that a root can be prepared before and retired after it is in use.
Pure: keys, clock and serials are arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hostmesh.errors import HostmeshError
from hostmesh.identity import svid
from hostmesh.identity.svid import BadCertificate
from hostmesh.names import SpiffeId

ROOT_LIFE = timedelta(days=3650)
INTERMEDIATE_LIFE = timedelta(days=365)


class CannotSign(HostmeshError):
    """The CA itself is not in a state to sign; whoever asked did nothing wrong."""


class SlotState(StrEnum):
    """prepared: trusted, signs nothing yet. active: signs. retired: trusted until what it signed has expired."""

    PREPARED = "prepared"
    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Slot:
    """One root and its intermediate. ``key`` is the intermediate's; only the active slot needs one."""

    state: SlotState
    root: x509.Certificate
    intermediate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of one trust domain. Exactly one slot is active."""

    trust_domain: str
    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        active = [slot for slot in self.slots if slot.state is SlotState.ACTIVE]
        if len(active) != 1 or active[0].key is None:
            raise CannotSign(
                f"the CA of {self.trust_domain} has {len(active)} active slots with a key; it needs one",
                "restore the controller's state directory from its backup",
            )

    @property
    def active(self) -> Slot:
        """The slot that signs."""
        return next(slot for slot in self.slots if slot.state is SlotState.ACTIVE)

    @property
    def trust_bundle(self) -> tuple[x509.Certificate, ...]:
        """The roots of all slots: what every host trusts."""
        return tuple(slot.root for slot in self.slots)

    def sign(
        self,
        spiffe_id: SpiffeId,
        dns_names: Sequence[str],
        key: ec.EllipticCurvePublicKey,
        *,
        now: datetime,
        life: timedelta,
        serial: int,
    ) -> tuple[x509.Certificate, ...]:
        """Signs an SVID. Result: the chain to send, leaf first, then the intermediate; never the root.

        A certificate never outlives its issuer; an issuer whose time is over signs nothing.
        """
        if spiffe_id.trust_domain != self.trust_domain:
            raise BadCertificate(f"{spiffe_id} is not of the trust domain {self.trust_domain}")
        issuer = self.active.intermediate
        begins = issuer.not_valid_before_utc
        ends = min(issuer.not_valid_after_utc, self.active.root.not_valid_after_utc)
        if not begins <= now < ends:
            raise CannotSign(
                "the intermediate certificate is not valid now",
                f"valid {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC; is the clock right?",
            )
        template = svid.leaf(spiffe_id, dns_names, key, now=now, life=min(life, ends - now), serial=serial)
        if self.active.key is None:
            raise CannotSign("the active slot has no key")
        signed = _sign(template, issuer, self.active.key)
        said = svid.read(signed)
        if (said.spiffe_id, said.dns_names, signed.public_key()) != (spiffe_id, tuple(dns_names), key):
            raise CannotSign(f"the certificate signed for {spiffe_id} reads back as {said}")
        return (signed, issuer)


def make_root(trust_domain: str, key: ec.EllipticCurvePrivateKey, *, now: datetime, serial: int) -> x509.Certificate:
    """A root certificate for ten years, signed by itself."""
    public = key.public_key()
    template = svid.ca(trust_domain, "root", public, now=now, life=ROOT_LIFE, serial=serial, path_length=1)
    name = template._subject_name
    if name is None:
        raise BadCertificate("a root needs a name")
    return template.issuer_name(name).sign(key, hashes.SHA256())


def make_intermediate(
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    serial: int,
) -> x509.Certificate:
    """An intermediate for a year; the one thing for which the root's key is needed."""
    template = svid.ca(
        svid.trust_domain_of(root), "intermediate", key, now=now, life=INTERMEDIATE_LIFE, serial=serial, path_length=0
    )
    return _sign(template, root, root_key)


def _sign(
    template: x509.CertificateBuilder, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    signed = template.issuer_name(issuer.subject).add_extension(identifier, critical=False).sign(key, hashes.SHA256())
    try:
        signed.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise BadCertificate("the signing key does not belong to its certificate") from error
    return signed


def check_chain(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime) -> svid.Svid:
    """Reads a chain (leaf, intermediate) back against the trust bundle: signatures, times, the SVID's own rules."""
    if len(chain) != 2:
        raise BadCertificate(f"a chain of {len(chain)} certificates; it must be leaf and intermediate")
    leaf, intermediate = chain
    for certificate in chain:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise BadCertificate(
                f"a certificate of the chain is valid {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC only, it is {now:%Y-%m-%d %H:%M}",
                "is the clock of this host right?",
            )
    if not any(_issued(intermediate, root) for root in roots) or not _issued(leaf, intermediate):
        raise BadCertificate("the chain does not end at a root of the trust bundle")
    if not intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise BadCertificate("the chain's intermediate may not sign")
    return svid.read(leaf)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
