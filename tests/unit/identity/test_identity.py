"""Certificates: what is signed reads back, what is wrong is refused, when to renew."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.identity import svid
from hostmesh.identity.attest import NotGranted, check_grant, identity_of
from hostmesh.identity.authority import (
    Authority,
    CannotSign,
    Slot,
    SlotState,
    check_chain,
    make_intermediate,
    make_root,
)
from hostmesh.identity.rotation import SvidState, renew_at, state
from hostmesh.identity.svid import BadCertificate, check_host_name, read_request
from hostmesh.names import BadName, SpiffeId, UnitName, dns_names_of

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ORDERS = SpiffeId.parse("spiffe://mesh.test/unit/orders")


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def slot(state: SlotState, trust_domain: str = "mesh.test") -> Slot:
    root_key, own = key(), key()
    root = make_root(trust_domain, root_key, now=NOW, serial=1)
    return Slot(state, root, make_intermediate(root, root_key, own.public_key(), now=NOW, serial=2), own)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("mesh.test", (slot(SlotState.ACTIVE), slot(SlotState.PREPARED)))


def sign(authority: Authority, now: datetime = NOW, life: timedelta = DAY) -> tuple[x509.Certificate, ...]:
    return authority.sign(ORDERS, ("h1",), key().public_key(), now=now, life=life, serial=7)


def test_a_signed_svid_says_what_was_asked(authority: Authority) -> None:
    chain = sign(authority)
    said = check_chain(chain, authority.trust_bundle, NOW)
    assert (said.spiffe_id, said.dns_names, said.serial) == (ORDERS, ("h1",), 7)
    assert (said.not_before, said.not_after) == (NOW - timedelta(minutes=5), NOW + DAY)
    leaf = chain[0]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert len(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == 2


def test_openssl_style_verification_agrees(authority: Authority) -> None:
    """The same fact on a second path: the verifier of the cryptography package, which is not ours."""
    chain = sign(authority)
    store = x509.verification.Store(list(authority.trust_bundle))
    verifier = x509.verification.PolicyBuilder().store(store).time(NOW).build_client_verifier()
    subject = verifier.verify(chain[0], list(chain[1:])).subjects
    assert subject is not None
    assert [name.value for name in subject] == [str(ORDERS), "h1"]


def test_other_roots_and_other_times_are_refused(authority: Authority) -> None:
    chain = sign(authority)
    with pytest.raises(BadCertificate, match="root of the trust bundle"):
        check_chain(chain, [slot(SlotState.ACTIVE).root], NOW)
    with pytest.raises(BadCertificate, match="is valid"):
        check_chain(chain, authority.trust_bundle, NOW + DAY + timedelta(seconds=1))
    with pytest.raises(BadCertificate, match="leaf and intermediate"):
        check_chain(chain[:1], authority.trust_bundle, NOW)


def test_a_certificate_never_outlives_its_issuer(authority: Authority) -> None:
    late = NOW + timedelta(days=364)
    assert sign(authority, late, 7 * DAY)[0].not_valid_after_utc == NOW + timedelta(days=365)
    for day in (-1, 366):
        with pytest.raises(CannotSign, match="not valid now") as refused:
            sign(authority, NOW + timedelta(days=day))
        assert f"to {NOW + timedelta(days=365):%Y-%m-%d %H:%M} UTC" in str(refused.value)


def test_only_the_own_trust_domain_is_signed(authority: Authority) -> None:
    with pytest.raises(BadCertificate, match="not of the trust domain"):
        authority.sign(
            SpiffeId.parse("spiffe://other.test/unit/x"), (), key().public_key(), now=NOW, life=DAY, serial=1
        )


def test_a_ca_needs_one_active_slot() -> None:
    one, two = slot(SlotState.ACTIVE), slot(SlotState.ACTIVE)
    for slots in ((), (one, two), (slot(SlotState.RETIRED),)):
        with pytest.raises(CannotSign, match="active slots"):
            Authority("mesh.test", slots)


def test_a_key_that_is_not_the_intermediates_signs_nothing() -> None:
    good = slot(SlotState.ACTIVE)
    with pytest.raises(BadCertificate, match="does not belong"):
        sign(Authority("mesh.test", (Slot(SlotState.ACTIVE, good.root, good.intermediate, key()),)))


def test_a_ca_certificate_is_no_svid(authority: Authority) -> None:
    with pytest.raises(BadCertificate, match="not an SVID"):
        svid.read(authority.active.intermediate)


def test_two_identities_are_no_identity() -> None:
    own = key()
    template = svid.leaf(ORDERS, (), own.public_key(), now=NOW, life=DAY, serial=1)
    names = [x509.UniformResourceIdentifier(f"spiffe://mesh.test/unit/{n}") for n in "ab"]
    builder = (
        x509.CertificateBuilder(
            extensions=[e for e in template._extensions if not isinstance(e.value, x509.SubjectAlternativeName)]
        )
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(own.public_key())
        .serial_number(1)
    )
    signed = (
        builder.not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(own, hashes.SHA256())
    )
    with pytest.raises(BadCertificate, match="2 URI names"):
        svid.read(signed)


def request(own: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mesh.test/unit/root")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    return builder.sign(own, hashes.SHA256()).public_bytes(Encoding.DER)


def test_requests_must_be_p256_and_proven() -> None:
    own = key()
    der = request(own)
    assert read_request(der) == own.public_key()
    with pytest.raises(BadCertificate, match="not P-256"):
        read_request(request(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(BadCertificate, match="not P-256"):
        read_request(request(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(BadCertificate, match="not signed by its own key"):
        read_request(der[:-1] + bytes([der[-1] ^ 1]))
    with pytest.raises(BadCertificate, match="cannot be read"):
        read_request(b"nonsense")


def test_host_names() -> None:
    assert dns_names_of("DB-01.Example.org") == ("db-01.example.org",)
    assert dns_names_of("a..b") == ()
    for bad in ("", "a/b", "-x", "a b", "h_1", "controller.mesh.test", "Controller.mesh.test"):
        with pytest.raises(BadName):
            check_host_name(bad, "mesh.test")


def test_grants() -> None:
    grants = tuple(check_grant(text) for text in ("nginx", "postgresql@*"))
    assert grants == ("nginx.service", "postgresql@*.service")
    assert str(identity_of("mesh.test", "h1", grants, UnitName("postgresql@15-main.service"))) == (
        "spiffe://mesh.test/unit/postgresql/15-main"
    )
    for unit in ("orders.service", "nginx.socket", "xnginx.service", "NGINX.service"):
        with pytest.raises(NotGranted, match="may not run"):
            identity_of("mesh.test", "h1", grants, UnitName(unit))
    for bad in ("[a-z]*", "a/b", ""):
        with pytest.raises(BadName):
            check_grant(bad)


@pytest.mark.parametrize(
    ("after", "expected"),
    [(0, "fresh"), (0.49, "fresh"), (0.51, "due"), (0.99, "due"), (1.0, "expired")],
)
def test_renewal_at_half_life(after: float, expected: str) -> None:
    assert state(NOW + after * DAY, NOW, NOW + DAY) is SvidState(expected)


def test_a_host_in_grace_can_only_renew() -> None:
    end = NOW + 14 * DAY
    assert renew_at(NOW, end, 0.0, 7 * DAY) == NOW + 3.5 * DAY
    assert state(NOW + 6 * DAY, NOW, end, grace=7 * DAY) is SvidState.DUE
    assert state(NOW + 8 * DAY, NOW, end, grace=7 * DAY) is SvidState.GRACE
    assert state(end, NOW, end, grace=7 * DAY) is SvidState.EXPIRED


@given(st.floats(0, 1))
def test_jitter_only_makes_it_earlier_and_not_by_much(jitter: float) -> None:
    at = renew_at(NOW, NOW + DAY, jitter)
    assert NOW + 0.4 * DAY <= at <= NOW + 0.5 * DAY
