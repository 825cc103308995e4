"""Turns what a person takes back into entries, and entries and a certificate into whether it still counts.

An entry names a host, a unit or a serial. One that a person made stands until it is taken away again. One that a
removal made (``begun_by``) is about the certificates of before: the host may join again, what was stolen stays useless.
The data plane's twin is `proxy/core/src/revoked.rs`. Pure: the clock is an argument.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from hostmesh.errors import HostmeshError
from hostmesh.identity.rotation import BACKDATE, HOST_GRACE, HOST_LIFE
from hostmesh.names import BadName, SpiffeId, UnitName, dns_names_of
from hostmesh.wire.snapshot import Revoked

MOST = 4096
"""Entries at once: every proxy of the mesh holds them all."""
_LONGEST_REASON = 200
_SERIAL = re.compile(r"[0-9a-f]{1,40}\Z")


class Kind(StrEnum):
    """What an entry names."""

    HOST = "host"
    UNIT = "unit"
    SERIAL = "serial"


class IsRevoked(HostmeshError):
    """An identity that was taken back."""


def entry(kind: Kind, text: str, trust_domain: str, reason: str = "") -> Revoked:
    """The entry that a person asks for: a host's name, a unit's, or a serial as `hostmesh certs` shows it."""
    if len(reason) > _LONGEST_REASON or not reason.isprintable():
        raise BadName("the reason cannot be kept", f"one line of at most {_LONGEST_REASON} characters")
    match kind:
        case Kind.HOST:
            name = text.lower()
            if not dns_names_of(name):
                raise BadName(f"{text!r} is not a host name", "hostmesh controller hosts lists those that are enrolled")
        case Kind.UNIT:
            name = str(SpiffeId.of_unit(trust_domain, UnitName.parse(text)))
        case Kind.SERIAL:
            name = text.lower().replace(":", "").lstrip("0")
            if not _SERIAL.match(name):
                raise BadName(f"{text!r} is not a serial number", "hex digits, as hostmesh certs shows them")
    return Revoked(kind.value, name, 0, reason)


def removal(host: str, now: datetime) -> Revoked:
    """The entry of a host that was taken out of the mesh: all that was signed for it up to now."""
    return Revoked(Kind.HOST.value, host.lower(), int((now - BACKDATE).timestamp()), "the host was removed")


def ends(one: Revoked, now: datetime, lives: Iterable[timedelta]) -> datetime | None:
    """When nothing that the entry names can be alive any more; None: it stands until a person takes it away.

    lives: of the certificates that the mesh signs now; they may have been longer before, within what is usual.
    """
    if not one.begun_by and one.kind != Kind.SERIAL:
        return None
    return now + max(*lives, HOST_LIFE + HOST_GRACE) + timedelta(days=1)


def of(
    entries: Iterable[Revoked], spiffe_id: SpiffeId, dns_names: Iterable[str], serial: int, not_before: float
) -> Revoked | None:
    """The entry by which the certificate that says all this counts for nothing. not_before: seconds since the epoch."""
    named = _naming(entries, spiffe_id, dns_names, f"{serial:x}")
    return next((e for e in named if not e.begun_by or not_before <= e.begun_by), None)


def standing(entries: Iterable[Revoked], spiffe_id: SpiffeId, dns_names: Iterable[str]) -> Revoked | None:
    """The entry by which nothing is signed for this identity on this host."""
    return next((e for e in _naming(entries, spiffe_id, dns_names) if not e.begun_by), None)


def not_before(entries: Iterable[Revoked], dns_names: Iterable[str], now: datetime) -> datetime:
    """``now``, or the first moment at which what is signed for this host is none of the certificates of before."""
    hosts = set(dns_names)
    removed = [e.begun_by for e in entries if e.kind == Kind.HOST and e.name in hosts and e.begun_by]
    earliest = datetime.fromtimestamp(max(removed, default=0) + 1, UTC) + BACKDATE
    return max(now, earliest)


def _naming(
    entries: Iterable[Revoked], spiffe_id: SpiffeId, dns_names: Iterable[str], serial: str = ""
) -> Iterator[Revoked]:
    """The entries that name any of these."""
    kind, _, host = spiffe_id.path.partition("/")
    hosts = {name.lower() for name in dns_names} | ({host.lower()} if kind == "host" else set())
    names = {Kind.SERIAL.value: {serial}, Kind.UNIT.value: {str(spiffe_id)}, Kind.HOST.value: hosts}
    return (entry for entry in entries if entry.name in names[entry.kind])


def news(before: Iterable[Revoked], after: Iterable[Revoked]) -> list[str]:
    """What is revoked now and was not, and the other way round, as sentences."""
    old, new = list(before), list(after)
    return [f"revoked: {sentence(one)}" for one in new if one not in old] + [
        f"no longer revoked: {sentence(one)}" for one in old if one not in new
    ]


def sentence(one: Revoked) -> str:
    """``unit spiffe://mesh/unit/web (stolen laptop)``."""
    return f"{one.kind} {one.name}" + (f" ({one.reason})" if one.reason else "")
