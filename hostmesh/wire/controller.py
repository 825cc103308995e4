"""The messages between agent and controller: gRPC (service ``hostmesh.v1.Controller``), bodies in JSON.

Enrol runs on the enrolment port with server authentication only; all else needs the host's SVID.
"""

from hostmesh.wire.snapshot import Service, Struct, Traffic

SERVICE = "hostmesh.v1.Controller"


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
    """What the calling host runs now: one unit that serves a service. ``rule``: where its traffic policy stands.

    ports: port number and protocol, as declared.
    """

    unit: str
    service: str
    ports: list[tuple[int, str]]
    traffic: Traffic


class PublishRequest(Struct):
    """All workloads of the calling host: replaces what it published before. ``addresses``: the host's, v4 and v6."""

    addresses: list[str]
    wire_port: int
    workloads: list[Workload]


class PublishReply(Struct):
    """Units that the host may not run, with the reason: the others are published."""

    refused: dict[str, str]


class WatchRequest(Struct):
    """Stream everything the host must know, from after ``revision`` (0: all)."""

    revision: int


class WatchEvent(Struct):
    """A change: services set or removed, the trust bundle when it changed. ``full``: forget all that came before."""

    revision: int
    full: bool
    services: list[Service]
    removed: list[str]
    trust_bundle: list[str]
    vip_ranges: list[str]
