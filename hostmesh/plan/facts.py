"""What was observed of the host, as data: an argument of `compile`. Made by `observe/host.py`, read here only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hostmesh.identity.jwks import PublicKey
from hostmesh.names import UnitName

NOBODY = 0xFFFF_FFFE
"""A user's number that no user has."""


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """A unit as systemd and the kernel show it.

    active: systemd's ActiveState is ``active`` (or ``reloading``). listens: (address, port) of its TCP listeners.
    cgroup_id: id of its slice's cgroup, 0 while the slice is not there. sockets: the ``.socket`` units that start it.
    """

    unit: UnitName
    active: bool
    cgroup_id: int = 0
    listens: frozenset[tuple[str, int]] = frozenset()
    sockets: tuple[UnitName, ...] = ()


@dataclass(frozen=True, slots=True)
class CollectorFacts:
    """What was found of the collector of traces. addresses: of its name. ca: base64 DER of `[traces] ca`."""

    addresses: tuple[str, ...] = ()
    ca: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host. addresses: global ones of its links, v4 first, without prefix length.

    numbers: unit number by unit, 1..4095, kept for the life of the boot. proxy_uid: the user that the proxy runs as.
    token_keys: the keys of token issuers by where they are had from (`TokenIssuer.jwks`)."""

    host: str
    addresses: tuple[str, ...]
    units: dict[UnitName, UnitFacts] = field(default_factory=dict)
    numbers: dict[UnitName, int] = field(default_factory=dict)
    proxy_uid: int = NOBODY
    token_keys: Mapping[str, Sequence[PublicKey]] = field(default_factory=dict)
    collector: CollectorFacts = field(default_factory=CollectorFacts)
