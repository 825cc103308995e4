"""The messages between agent and controller: gRPC (service ``hostmesh.v1.Controller``), bodies in JSON.

Enrol runs on the enrolment port with server authentication only; all else needs the host's SVID.
"""

import base64
import binascii

import msgspec

from hostmesh.wire.codec import decode
from hostmesh.wire.snapshot import Revoked, Service, Struct, Traffic

SERVICE = "hostmesh.v1.Controller"
TOKEN_PREFIX = "hostmesh1."  # noqa: S105  public: the format's version


class JoinToken(Struct):
    """What a person carries to a new host. controllers: ``ADDRESS:PORT`` for enrolment; root: base64 DER.

    With the root in it the host knows the controller from the first byte.
    """

    secret: str
    host: str
    controllers: list[str]
    root: str


def write_token(token: JoinToken) -> str:
    """The token as one word: ``hostmesh1.`` and base64url without padding (RFC 4648, section 5)."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def read_token(text: str) -> JoinToken:
    """The token that was written. Raises `ValueError` with the reason."""
    word = text.strip()
    if not word.startswith(TOKEN_PREFIX):
        raise ValueError(f"a join token begins with {TOKEN_PREFIX}")
    body = word[len(TOKEN_PREFIX) :]
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        return decode(data, JoinToken)
    except (binascii.Error, msgspec.MsgspecError) as error:
        raise ValueError(f"the join token is damaged: {error}") from error


class EnrolRequest(Struct):
    """A new host: its one-time token secret, its name, and a PKCS#10 request (base64 DER) for its host key."""

    secret: str
    host: str
    csr: str


class EnrolReply(Struct):
    """The host's SVID chain and the trust bundle, base64 DER, and where to go from here."""

    chain: list[str]
    trust_bundle: list[str]
    trust_domain: str
    controllers: list[str]


class RenewRequest(Struct):
    """A new SVID for the calling host."""

    csr: str


class SignRequest(Struct):
    """An SVID for a unit that the calling host may run."""

    unit: str
    csr: str


class SignReply(Struct):
    """The chain, base64 DER, leaf first."""

    chain: list[str]


class Workload(Struct):
    """One unit of the calling host that serves a service, by its policy; running or not.

    ports: port number and protocol, as declared. ready: systemd says that it serves now. ``rule`` of traffic: where its
    traffic policy stands.
    """

    unit: str
    service: str
    ports: list[tuple[int, str]]
    traffic: Traffic
    ready: bool


class PublishRequest(Struct):
    """All workloads of the calling host: replaces what it published before. ``addresses``, ``zone``: the host's."""

    addresses: list[str]
    wire_port: int
    workloads: list[Workload]
    zone: str = ""


class PublishReply(Struct):
    """Units that the host may not run, with the reason: the others are published. ``unrouted``: units that are, but not
    their routes, with the reason."""

    refused: dict[str, str]
    unrouted: dict[str, str] = {}


class WatchRequest(Struct):
    """Stream everything the host must know, from after ``revision`` (0: all)."""

    revision: int


class WatchEvent(Struct):
    """A change: services set or removed. ``full``: forget all that came before. Bundle, ranges and what is revoked are
    always whole.

    conflicts: services of this event whose hosts publish different [traffic]; ``HOST FILE:LINE``, in force first.
    """

    revision: int
    full: bool
    services: list[Service]
    removed: list[str]
    trust_bundle: list[str]
    vip_ranges: list[str]
    conflicts: dict[str, list[str]] = {}
    revoked: list[Revoked] = []
