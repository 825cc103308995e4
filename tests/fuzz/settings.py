"""Fuzzes the settings of a host and of a controller: refused with a reason, or written and read back the same."""

from hostmesh.controller import config
from hostmesh.errors import PolicyError
from hostmesh.policy.hostfile import PLACE, load_settings, render
from tests.fuzz.policy import check_places


def one(data: bytes) -> None:
    """One file, read as both."""
    text = data.decode("utf-8", "replace")
    host(text)
    controller(text)


def host(text: str) -> None:
    """`hostmesh.toml`."""
    try:
        settings = load_settings(PLACE, text)
    except PolicyError as error:
        check_places(error, PLACE, text)
    else:
        assert load_settings(PLACE, render(settings)) == settings


def controller(text: str) -> None:
    """`controller.toml`."""
    try:
        settings = config.read(text, "controller.toml")
    except config.ConfigError as error:
        told = error.message
    else:
        told = "controller.toml"
        assert config.read(config.dump(settings), "again") == settings
    assert "controller.toml" in told, "an error without its file"
