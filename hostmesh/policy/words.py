"""Turns single words of a policy into checked ones: callers, methods, paths, headers, networks, destinations.

Each function raises BadName, whose text is the finding.
"""

import ipaddress
import re

from hostmesh.errors import Place
from hostmesh.names import BadName, SpiffeId, check_service_name
from hostmesh.policy.model import OutboundRule
from hostmesh.policy.paths import AmbiguousPath, normal_path

_CALLER = re.compile(r"[A-Za-z0-9:_.\\@*-]{1,245}\Z")  # no longer than a unit's name, whatever stands for the stars
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\Z")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})


def caller(text: str) -> str:
    """A unit's name without ``.service``, a glob of such, or a SPIFFE ID with globs in its path."""
    if text.startswith("spiffe:"):
        SpiffeId.parse(text.replace("*", "x"))
        if "*" in text.removeprefix("spiffe://").partition("/")[0]:
            raise BadName(f"{text!r}: a trust domain is named as a whole", "'*' may stand in the path only")
        return text
    name = text.removesuffix(".service")
    if not _CALLER.match(name):
        raise BadName(f"{text!r} is no caller", "a unit (orders), a glob (legacy-*), or a SPIFFE ID")
    return name


def method(text: str) -> str:
    """An HTTP method: a token (RFC 9110, section 9.1), with regard to case."""
    if not _TOKEN.match(text):
        raise BadName(f"{text!r} is not an HTTP method", "for example: GET")
    if text not in _METHODS and text.upper() in _METHODS:
        raise BadName(f"{text!r} is not an HTTP method: case counts", f"did you mean {text.upper()!r}?")
    return text


def path(text: str) -> str:
    """A path in normal form, with at most one ``*``, at its end."""
    if not text.startswith("/"):
        raise BadName(f"{text!r} is not a path: it begins with a slash", f"did you mean {'/' + text!r}?")
    if "*" in text[:-1]:
        raise BadName(f"{text!r}: a '*' stands at the end only", "for example: /products/*")
    if "?" in text:
        raise BadName(f"{text!r}: a path has no query", "rules do not see what follows the question mark")
    plain = text.removesuffix("*")
    try:
        normal = normal_path(plain)
    except AmbiguousPath as error:
        raise BadName(f"{text!r} fits no path: {error}", "paths are compared in one normal form") from error
    if normal != plain:
        raise BadName(f"{text!r} fits no path: it is not in normal form", f"write {normal + text[len(plain) :]!r}")
    return text


def header(name: str, value: str) -> tuple[str, str]:
    """A header's name in lower case and its value: visible ASCII, no blanks round it (RFC 9110, section 5)."""
    if not _TOKEN.match(name):
        raise BadName(f"{name!r} is not a header's name", "for example: x-tenant")
    if not _HEADER_VALUE.match(value):
        raise BadName(f"{value!r} is not a header's value", "visible characters of ASCII, and spaces between them")
    return name.lower(), value


def hash_on(text: str) -> str:
    """What a request is told apart by: ``header:NAME`` (in lower case), ``cookie:NAME`` or ``source``."""
    kind, _, name = text.partition(":")
    if text == "source" or (kind == "cookie" and _TOKEN.match(name)):
        return text
    if kind == "header" and _TOKEN.match(name):
        return text.lower()
    raise BadName(f"{text!r} is nothing to hash by", 'for example "header:x-user", "cookie:session" or "source"')


def plaintext_source(text: str) -> str:
    """A network in its CIDR form, or ``local``. Loopback is ``local``: from the network nobody has such an address."""
    if text == "local":
        return text
    network = _network(text)
    if network is None:
        raise BadName(f"{text!r} is not a network", 'for example "198.51.100.7/32", "2001:db8::/64" or "local"')
    if network.is_loopback:
        raise BadName(f"{text!r} is this host itself", "did you mean 'local'?")
    return str(network)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """An address or a network; None if it is neither. Host bits that are set are an error of their own."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if "/" in text and ipaddress.ip_interface(text).ip != network.network_address:
        raise BadName(f"{text!r} names a host, and a network as well", f"did you mean {str(network)!r}?")
    return network


def server_name(text: str) -> str:
    """``a.example.org``, ``*.example.org`` (one label or more before it) or ``*`` (any): a server of TLS."""
    name = text.removeprefix("*.")
    if text != "*" and (len(name) > 253 or not all(map(_LABEL.match, name.split(".")))):
        raise BadName(
            f"{text!r} is not the name of a server", "for example: a.example.org, *.example.org, or * for any"
        )
    return text.lower()


def destination(place: Place, text: str) -> OutboundRule:
    """``db``, ``db:5432``, ``api.example.org:443``, ``198.51.100.0/24``, ``[2001:db8::1]:443``."""
    name, port = _split_port(text)
    network = _network(name)
    if network is not None:
        return OutboundRule(place, network=str(network), port=port)
    if name.endswith(".mesh") and name.count(".") == 1:
        name = name.removesuffix(".mesh")
    if "." not in name:
        hint = "a service (db), a host name (api.example.org:443) or a network (198.51.100.0/24)"
        try:
            return OutboundRule(place, service=check_service_name(name), port=port)
        except BadName as error:
            raise BadName(f"{text!r} is no destination", hint) from error
    if not _HOST.match(name.lower().rstrip(".")):
        raise BadName(f"{name!r} is not a host name", "for example: api.example.org:443")
    return OutboundRule(place, host=name.lower().rstrip("."), port=port)


def _split_port(text: str) -> tuple[str, int]:
    bracketed = re.match(r"\[([^\]]*)\](?::(.*))?\Z", text, re.DOTALL)
    if bracketed:
        name, digits = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        name, _, digits = text.partition(":")
    else:
        return text, 0
    if digits is None:
        return name, 0
    if not re.match(r"[0-9]{1,5}\Z", digits) or not 1 <= int(digits) <= 65535:
        raise BadName(f"{digits!r} is not a port: 1..65535", f"for example: {name}:443")
    return name, int(digits)
