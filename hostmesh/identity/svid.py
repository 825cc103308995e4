"""Turns an identity and a public key into a certificate template, and a signed certificate back into what it says.

The rules are the SPIFFE X.509-SVID standard's: one URI SAN, no CA, digitalSignature; section numbers stand beside the
checks. Pure: clock and serial are arguments. What is signed is read back by `read` before anybody gets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostmesh.errors import HostmeshError
from hostmesh.identity.rotation import BACKDATE
from hostmesh.names import BadName, SpiffeId, dns_names_of


class BadCertificate(HostmeshError):
    """A certificate or a request that is not what it must be."""


@dataclass(frozen=True, slots=True)
class Svid:
    """What a certificate says: identity, DNS SANs, serial, validity (aware, UTC)."""

    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]
    serial: int
    not_before: datetime
    not_after: datetime


def check_host_name(host: str, trust_domain: str) -> str:
    """A host name: a DNS name, in any case (RFC 1123, section 2.1); never the controllers' own name.

    It stands in every certificate of the host: what could not stand there could not be revoked by it either.
    """
    if not dns_names_of(host):
        raise BadName(f"{host!r} is not a host name", "letters, digits, dots and dashes: db-01.example.org")
    if host.lower() == controller_name(trust_domain):
        raise BadName(f"a host cannot be called {host}", "this is the name of the controllers' own certificates")
    return host


def controller_name(trust_domain: str) -> str:
    """The DNS name in every controller's certificate: what a client asks for, whatever address it dials."""
    return f"controller.{trust_domain}"


def read_request(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a PKCS#10 request (RFC 2986) that its sender proved to hold. Nothing else in it is believed."""
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadCertificate(f"the signing request cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadCertificate("the signing request's key is not P-256", "keys of this mesh are ECDSA P-256")
    if not proven:
        raise BadCertificate("the signing request is not signed by its own key")
    return key


def leaf(
    spiffe_id: SpiffeId,
    dns_names: Sequence[str],
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    life: timedelta,
    serial: int,
) -> x509.CertificateBuilder:
    """The template of an SVID (X.509-SVID, sections 2 and 4), still without issuer. ``life`` counts from ``now``."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
    names += [x509.DNSName(name) for name in dns_names]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "hostmesh")]))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def ca(
    trust_domain: str,
    kind: str,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    life: timedelta,
    serial: int,
    path_length: int,
) -> x509.CertificateBuilder:
    """The template of a signing certificate (X.509-SVID, section 3.2): its URI SAN is the trust domain.

    kind: root | intermediate.
    """
    name = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "hostmesh"),
        x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain[:40]} {kind} {serial & 0xFFFFFFFF:08x}"),
    ]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(name))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + life)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def read(certificate: x509.Certificate) -> Svid:
    """Reads an SVID back and holds it to the standard: one URI SAN, no CA, the right usages. Not its signature."""
    try:
        sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise BadCertificate(f"not an SVID: {error}") from error
    uris = sans.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise BadCertificate(f"not an SVID: {len(uris)} URI names, there must be one (X.509-SVID, section 2)")
    if constraints.ca or usage.key_cert_sign or usage.crl_sign or not usage.digital_signature:
        raise BadCertificate("not an SVID: it may sign certificates (X.509-SVID, section 4)")
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(extended):
        raise BadCertificate("not an SVID of this mesh: it must serve as client and as server")
    return Svid(
        spiffe_id=SpiffeId.parse(uris[0]),
        dns_names=tuple(sans.get_values_for_type(x509.DNSName)),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def trust_domain_of(root: x509.Certificate) -> str:
    """The trust domain of a root: its URI SAN, ``spiffe://TRUST-DOMAIN`` (X.509-SVID, section 3.2)."""
    try:
        sans = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = sans.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise BadCertificate(f"the root certificate names no trust domain: {error}") from error
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise BadCertificate("the root certificate names no trust domain")
    return SpiffeId.parse(f"{uris[0]}/x").trust_domain
