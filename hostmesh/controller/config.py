"""Turns `/etc/hostmesh/controller.toml` into checked settings, and settings into that file."""

import tomllib
from dataclasses import dataclass, fields
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

from hostmesh.errors import HostmeshError
from hostmesh.names import BadName, check_trust_domain
from hostmesh.policy.hostfile import quoted
from hostmesh.registry.catalog import RangeError, capacity

PATH = Path("/etc/hostmesh/controller.toml")
USER = "hostmesh-controller"


class ConfigError(HostmeshError):
    """A controller.toml that does not pass."""


@dataclass(frozen=True, slots=True)
class Config:
    """The controller's settings.

    advertise: the addresses by which hosts reach this controller. silence: seconds without a word from a host until its
    endpoints are withdrawn. unit_hours, host_days: life of SVIDs.
    """

    trust_domain: str = "mesh.local"
    name: str = "controller"
    state: Path = Path("/var/lib/hostmesh-controller")
    listen: tuple[str, ...] = ("::",)  # all addresses, IPv4 too: hosts come from everywhere, with certificates
    port: int = 15010
    enrolment_port: int = 15011
    advertise: tuple[str, ...] = ("127.0.0.1",)
    vip_ranges: tuple[str, ...] = ("240.240.0.0/16", "fd00:240::/112")
    silence: float = 90.0
    unit_hours: float = 24.0
    host_days: float = 7.0

    @property
    def unit_life(self) -> timedelta:
        """Life of a unit's SVID."""
        return timedelta(hours=self.unit_hours)

    @property
    def host_life(self) -> timedelta:
        """Life of a host's SVID, without its grace."""
        return timedelta(days=self.host_days)

    def endpoints(self, port: int) -> list[str]:
        """The advertised addresses with a port, IPv6 in brackets."""
        return [f"[{text}]:{port}" if ":" in text else f"{text}:{port}" for text in self.advertise]


def load(path: Path) -> Config:
    """Reads and checks the file. Raises `ConfigError` that says what to change."""
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there", "hostmesh controller init makes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return read(text, str(path))


def read(text: str, where: str) -> Config:
    """The file's text to settings."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # what TOML forbids; numbers and nesting beyond Python's limits
        raise ConfigError(f"{where} cannot be read: {error}") from error
    return parse(table, where)


def parse(table: dict[str, object], where: str) -> Config:
    """A table to settings; unknown keys and wrong types are errors."""
    default = Config()
    known = {field.name: getattr(default, field.name) for field in fields(Config)}
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}", f"known keys: {', '.join(sorted(known))}")
        values[key] = _typed(where, key, value, known[key])
    config = Config(**values)  # type: ignore[arg-type]  # every value was checked against its default's type
    _check(config, where)
    return config


def _typed(where: str, key: str, value: object, default: object) -> object:
    if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(default, Path) and isinstance(value, str):
        return Path(value)
    if isinstance(default, float) and type(value) in (int, float):
        return float(str(value))
    if type(value) is type(default):
        return value
    kind = {"tuple": "a list of strings", "PosixPath": "a path", "float": "a number", "int": "a whole number"}
    raise ConfigError(f"{where}: {key} must be {kind.get(type(default).__name__, 'a string')}, not {value!r}")


def _check(config: Config, where: str) -> None:
    try:
        check_trust_domain(config.trust_domain)
        for text in (*config.listen, *config.advertise):
            ip_address(text)
        for text in config.vip_ranges:
            ip_network(text)
        capacity(config.vip_ranges)
    except (ValueError, BadName, RangeError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if not config.name or not config.name.replace("-", "").replace(".", "").isalnum():
        raise ConfigError(f"{where}: name {config.name!r} must be letters, digits, dots and dashes")
    if not config.advertise:
        raise ConfigError(f"{where}: advertise is empty", "the addresses by which hosts reach this controller")
    if min(config.silence, config.unit_hours, config.host_days) <= 0:
        raise ConfigError(f"{where}: silence, unit_hours and host_days must be greater than 0")


def dump(config: Config) -> str:
    """The file's text: every key, so that nobody has to guess what can be set."""
    lines = ["# The hostmesh controller. A change takes a restart of hostmesh-controller.service."]
    for field in fields(Config):
        value = getattr(config, field.name)
        if isinstance(value, tuple):
            text = "[" + ", ".join(map(quoted, value)) + "]"
        else:
            text = quoted(str(value)) if isinstance(value, str | Path) else str(value)
        lines.append(f"{field.name} = {text}")
    return "\n".join(lines) + "\n"
