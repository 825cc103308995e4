"""Turns who asks for a certificate into a chain, by named steps.

Law: killed after any of `STEPS`, the controller's next life gives the same asker a chain, and nobody else. Durable is
only what `use_token` writes: which key a join token was used with.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hostmesh.controller import ca
from hostmesh.controller.feed import Feed
from hostmesh.controller.store import Store
from hostmesh.identity import revocation
from hostmesh.identity.authority import Authority
from hostmesh.identity.revocation import IsRevoked
from hostmesh.names import SpiffeId, dns_names_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Signing:
    """One certificate on its way. secret: of the join token by which a host enrols; serial, chain: work of steps."""

    identity: SpiffeId
    host: str
    key: ec.EllipticCurvePublicKey
    life: timedelta
    secret: str = ""
    serial: int = 0
    chain: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Signer:
    """What the steps need."""

    store: Store
    authority: Authority
    feed: Feed

    def sign(self, one: Signing) -> list[str]:
        """The chain, base64 DER, leaf first."""
        for step in STEPS:
            step(self, one)
        return [ca.base64_der(part) for part in one.chain]


def must_stand(signer: Signer, one: Signing) -> None:
    """Raises `IsRevoked` where nothing is signed for this identity on this host."""
    signer.feed.refresh()
    entry = revocation.standing(signer.feed.revoked, one.identity, dns_names_of(one.host))
    if entry:
        raise IsRevoked(
            f"{one.identity} gets no certificate, revoked: {revocation.sentence(entry)}",
            f"on the controller, if it may again: hostmesh controller unrevoke {entry.kind} NAME",
        )


def use_token(signer: Signer, one: Signing) -> None:
    """Lets the host in, where it asks with a join token; used up for every key but this one."""
    if one.secret:
        spki = one.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        signer.store.enrol(one.secret, one.host, ca.seconds(), sha256(spki).digest())


def draw_serial(_: Signer, one: Signing) -> None:
    """Nobody had it before, in this life or another: chance is wide enough."""
    one.serial = ca.new_serial()


def certify(signer: Signer, one: Signing) -> None:
    """Signs, and reads back."""
    names = dns_names_of(one.host)
    now = revocation.not_before(signer.feed.revoked, names, ca.clock())
    one.chain = signer.authority.sign(one.identity, names, one.key, now=now, life=one.life, serial=one.serial)


def tell(_: Signer, one: Signing) -> None:
    """Writes down what leaves: where an answer is lost, the log knows what was signed."""
    log.info("signed %s for host %s, serial %x", one.identity, one.host, one.serial)


STEPS: tuple[Callable[[Signer, Signing], None], ...] = (must_stand, use_token, draw_serial, certify, tell)
