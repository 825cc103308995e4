"""Turns text into value types: unit names, slices, SPIFFE IDs.

Pure, and the only place that knows how one kind of name becomes another.
"""

import hashlib
import re
from dataclasses import dataclass

from hostmesh.errors import HostmeshError

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|socket|scope)\Z")
_DNS = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_SPIFFE_SAFE = re.compile(r"[A-Za-z0-9.-]")


class BadName(HostmeshError):
    """A name that cannot be one of its kind."""


@dataclass(frozen=True, slots=True, order=True)
class UnitName:
    """A systemd unit name with its suffix, e.g. ``postgresql@15-main.service`` (systemd.unit(5))."""

    full: str

    def __post_init__(self) -> None:
        if len(self.full) > 255 or not _UNIT.match(self.full):
            raise BadName(f"{self.full!r} is not a unit name", "for example: nginx.service")

    @classmethod
    def parse(cls, text: str) -> "UnitName":
        """Read a name as a person types it: ``nginx`` means ``nginx.service``."""
        return cls(text if text.endswith((".service", ".socket", ".scope")) else f"{text}.service")

    @property
    def stem(self) -> str:
        """The name without its suffix: ``postgresql@15-main``; how policies and journals name the unit."""
        return self.full.rsplit(".", 1)[0]

    @property
    def slice(self) -> str:
        """The slice that meshes it; escaped so that it sits right under ``mesh.slice`` (systemd-escape(1))."""
        return f"mesh-{_escape(self.stem)}.slice"

    @property
    def cgroup(self) -> str:
        """The slice's cgroup path from the root, without a leading slash: two levels."""
        return f"mesh.slice/{self.slice}"

    def __str__(self) -> str:
        return self.full


def _escape(text: str) -> str:
    """As ``systemd-escape`` does for a path component, with ``@`` escaped too: slices know no instances."""
    out = []
    for index, char in enumerate(text):
        if char.isascii() and (char.isalnum() or char in ":_" or (char == "." and index)):
            out.append(char)
        else:
            out.extend(f"\\x{byte:02x}" for byte in char.encode())
    return "".join(out)


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID, ``spiffe://TRUST-DOMAIN/PATH`` (the SPIFFE-ID standard, sections 2.1 and 2.2)."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> "SpiffeId":
        """Read a SPIFFE ID; anything that the standard does not allow is an error."""
        match = re.match(r"spiffe://([^/]+)/(.+)\Z", uri)
        if not match or not _TRUST_DOMAIN.match(match[1]) or len(uri) > 2048:
            raise BadName(f"{uri!r} is not a SPIFFE ID", "for example: spiffe://mesh.example/unit/orders")
        for segment in match[2].split("/"):
            if not re.match(r"[A-Za-z0-9._-]+\Z", segment) or segment in (".", ".."):
                raise BadName(f"{uri!r} is not a SPIFFE ID: bad path segment {segment!r}")
        return cls(match[1], match[2])

    @classmethod
    def of_unit(cls, trust_domain: str, unit: UnitName) -> "SpiffeId":
        """The identity of a unit. ``@`` becomes a path separator, other foreign bytes ``_xHH``: one to one."""
        return cls(trust_domain, "unit/" + "/".join(_spiffe_segment(part) for part in unit.stem.split("@")))

    @classmethod
    def of_host(cls, trust_domain: str, host: str) -> "SpiffeId":
        """The identity of a host's agent."""
        return cls(trust_domain, f"host/{_spiffe_segment(host)}")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.path}"


def _spiffe_segment(text: str) -> str:
    out = []
    for index, char in enumerate(text):
        plain_underscore = char == "_" and text[index + 1 : index + 2] != "x"
        if _SPIFFE_SAFE.match(char) or plain_underscore:
            out.append(char)
        else:
            out.extend(f"_x{byte:02x}" for byte in char.encode())
    segment = "".join(out)
    return segment.replace(".", "_x2e") if segment in (".", "..") else segment


def sni_of(spiffe_id: SpiffeId) -> str:
    """The TLS server name (RFC 6066) that selects this identity: a DNS name of its own for every identity.

    A path that is a DNS label as it stands is readable (``orders.unit.mesh.local``); any other is a digest.
    """
    kind, _, rest = spiffe_id.path.partition("/")
    readable = _LABEL.match(rest) and not rest.startswith("x-")
    label = rest if readable else "x-" + hashlib.sha256(rest.encode()).hexdigest()[:40]
    return f"{label}.{kind}.{spiffe_id.trust_domain}"


def service_name_of(unit: UnitName) -> str:
    """The name by which callers know a unit whose policy gives none: the stem, made a DNS label (RFC 1123)."""
    label = re.sub(r"[^a-z0-9-]+", "-", unit.stem.lower()).strip("-")[:63].strip("-")
    if not label:
        raise BadName(f"no service name can be made of {unit.full}", "give [service] name in its policy")
    return label


def check_service_name(name: str) -> str:
    """A service name is one DNS label in lower case (RFC 1123, section 2.1)."""
    if not _LABEL.match(name):
        raise BadName(f"{name!r} is not a service name", "lower-case letters, digits and dashes, at most 63")
    return name


def check_zone_name(name: str) -> str:
    """A zone is one DNS label in lower case, too."""
    if not _LABEL.match(name):
        raise BadName(f"{name!r} is not a zone", "lower-case letters, digits and dashes, at most 63")
    return name


def check_trust_domain(name: str) -> str:
    """A trust domain: lower-case letters, digits, dots, dashes, underscores (SPIFFE-ID, section 2.1)."""
    if not _TRUST_DOMAIN.match(name):
        raise BadName(f"{name!r} is not a trust domain", "for example: mesh.example")
    return name


def dns_names_of(host: str) -> tuple[str, ...]:
    """The host as DNS SAN, when it is a DNS name (RFC 1123, section 2.1; in lower case)."""
    return (host.lower(),) if _DNS.match(host.lower()) else ()
