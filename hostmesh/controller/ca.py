"""Turns the CA's files into an `Authority`, and a new CA into files.

`STATE/ca/NUMBER/` holds `root.crt`, `root.key`, `intermediate.crt`, `intermediate.key`; the store says which number is
active. `root.key` is read by nobody here: it makes intermediates, and can be kept elsewhere.
"""

import base64
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hostmesh.apply.clock import boottime
from hostmesh.apply.files import create
from hostmesh.controller.config import Config
from hostmesh.controller.store import Store
from hostmesh.identity.authority import Authority, Slot, SlotState, make_intermediate, make_root
from hostmesh.identity.rotation import BACKDATE, CONTROLLER_LIFE
from hostmesh.identity.svid import BadCertificate, controller_name
from hostmesh.names import SpiffeId

PEM = serialization.Encoding.PEM


def clock() -> datetime:
    """Now, aware, UTC."""
    return datetime.now(UTC)


def seconds() -> int:
    """Now, whole seconds since the epoch: as the store keeps times."""
    return int(clock().timestamp())


def base64_der(certificate: x509.Certificate) -> str:
    """The certificate as messages carry it."""
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


def new_serial() -> int:
    """A serial: 159 random bits (RFC 5280, section 4.1.2.2: positive, at most 20 octets)."""
    return secrets.randbits(159) | 1


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def make(state: Path, store: Store, trust_domain: str) -> list[Path]:
    """Makes root and intermediate, as slot 1, active. Result: what was written, folders first."""
    now = clock()
    root_key, intermediate_key = new_key(), new_key()
    root = make_root(trust_domain, root_key, now=now, serial=new_serial())
    intermediate = make_intermediate(root, root_key, intermediate_key.public_key(), now=now, serial=new_serial())
    folder = state / "ca" / "1"
    folder.parent.mkdir(mode=0o700)
    folder.mkdir(mode=0o700)
    written = [
        create(folder / "root.key", key_pem(root_key), 0o600),
        create(folder / "root.crt", root.public_bytes(PEM), 0o644),
        create(folder / "intermediate.key", key_pem(intermediate_key), 0o600),
        create(folder / "intermediate.crt", intermediate.public_bytes(PEM), 0o644),
    ]
    store.put_slot(1, SlotState.ACTIVE)
    return [folder.parent, folder, *written]


def load(state: Path, store: Store, trust_domain: str) -> Authority:
    """Reads all slots. Only the active one's intermediate key is read."""
    slots = []
    for number, text in store.slots():
        folder, kind = state / "ca" / str(number), SlotState(text)
        try:
            root = x509.load_pem_x509_certificate((folder / "root.crt").read_bytes())
            intermediate = x509.load_pem_x509_certificate((folder / "intermediate.crt").read_bytes())
            pem = (folder / "intermediate.key").read_bytes() if kind is SlotState.ACTIVE else None
            key = serialization.load_pem_private_key(pem, None) if pem else None
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # a key with a password is a TypeError
            raise BadCertificate(f"the CA in {folder} cannot be read: {error}", "restore it from its backup") from error
        if key is not None and not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BadCertificate(f"{folder}/intermediate.key is not a P-256 key")
        slots.append(Slot(kind, root, intermediate, key))
    return Authority(trust_domain, tuple(slots))


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The controller's own SVID, as gRPC wants it: PEM key and chain. made: when, by wall clock and CLOCK_BOOTTIME."""

    key: bytes
    chain: bytes
    made: tuple[datetime, float]

    def is_due(self, now: datetime, boot: float) -> bool:
        """Half of its life is over by either clock, or the wall clock was set back past its beginning."""
        age = max(now - self.made[0], timedelta(seconds=boot - self.made[1]))
        return age >= CONTROLLER_LIFE / 2 or now < self.made[0] - BACKDATE


def own_identity(authority: Authority, config: Config) -> ServerIdentity:
    """A new key and SVID for this controller; they live in memory only."""
    key, now = new_key(), clock()
    chain = authority.sign(
        SpiffeId(config.trust_domain, f"controller/{config.name}"),
        (controller_name(config.trust_domain),),
        key.public_key(),
        now=now,
        life=CONTROLLER_LIFE,
        serial=new_serial(),
    )
    pem = b"".join(certificate.public_bytes(PEM) for certificate in chain)
    return ServerIdentity(key_pem(key), pem, (now, boottime()))
