"""Turns units into numbers 1..4095, the same for the life of a boot and none used twice in it.

A mark that is still in a packet, a socket or a foreign table must never come to mean another unit.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from hostmesh.apply.files import Files
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.wire.codec import decode

LAST = 4095


class NumbersUsedUp(HostmeshError):
    """More than 4095 units were meshed since the host booted."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    boot: str
    next: int
    numbers: dict[str, int]


class Numbers:
    """Kept in a file with the boot's id (``/proc/sys/kernel/random/boot_id``, random(4)): another boot, new numbers."""

    def __init__(self, path: Path, boot: str) -> None:
        self._path = path
        self._kept = _load(path, boot)

    def known(self) -> dict[UnitName, int]:
        """The numbers given in this boot."""
        return {UnitName(name): number for name, number in self._kept.numbers.items()}

    def of(self, units: Iterable[UnitName]) -> dict[UnitName, int]:
        """The units' numbers; new ones are given and written down first. Raises `NumbersUsedUp`."""
        wanted = list(units)
        kept = _give(self._kept, wanted)
        if kept != self._kept:
            Files().write(str(self._path), msgspec.json.encode(kept).decode())
            self._kept = kept
        return {unit: kept.numbers[unit.full] for unit in wanted}

    def preview(self, units: Iterable[UnitName]) -> dict[UnitName, int]:
        """The numbers that `of` would give; none is taken."""
        wanted = list(units)
        numbers: Mapping[str, int] = _give(self._kept, wanted).numbers
        return {unit: numbers[unit.full] for unit in wanted}


def _give(kept: _Kept, units: Iterable[UnitName]) -> _Kept:
    numbers, following = dict(kept.numbers), kept.next
    for unit in units:
        if unit.full not in numbers:
            if following > LAST:
                raise NumbersUsedUp(f"{unit}: all {LAST} unit numbers of this boot are given", "reboot the host")
            numbers[unit.full], following = following, following + 1
    return _Kept(kept.boot, following, numbers)


def _load(path: Path, boot: str) -> _Kept:
    try:
        kept = decode(path.read_bytes(), _Kept)
    except FileNotFoundError:
        return _Kept(boot, 1, {})
    except msgspec.DecodeError as error:
        hint = "remove it and reboot: numbers must not be used twice"
        raise HostmeshError(f"{path} cannot be read: {error}", hint) from error
    return kept if kept.boot == boot else _Kept(boot, 1, {})
