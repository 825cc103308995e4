"""Turns the limits of this process (getrlimit(2)) into a refusal where it could not work, before anything hangs.

gRPC waits for ever where it can make no thread, and is killed where it gets no descriptor: neither tells why.
"""

import resource

from hostmesh.errors import HostmeshError

_DESCRIPTORS = 64
_ADDRESS_SPACE = 512 << 20  # of two cores; each more may want some more


class TooLittle(HostmeshError):
    """A limit below which the process cannot do its work."""


def check(unit: str) -> None:
    """Raises `TooLittle` with the setting of the unit that stands in the way."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors < _DESCRIPTORS:
        raise _too_little("LimitNOFILE", str(descriptors), str(_DESCRIPTORS), unit)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < _ADDRESS_SPACE:
        raise _too_little("LimitAS", f"{space >> 20}M", f"{_ADDRESS_SPACE >> 20}M", unit)


def _too_little(setting: str, found: str, wanted: str, unit: str) -> TooLittle:
    return TooLittle(
        f"{setting}={found} is too little to work with",
        f"set {setting}={wanted} or more (systemctl edit {unit}), then: systemctl restart {unit}",
    )
