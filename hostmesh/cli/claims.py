"""Turns claims, made up or of a token at hand, into the token of a made-up request. Nothing of it is checked."""

import argparse
import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from pathlib import Path

from hostmesh.errors import HostmeshError
from hostmesh.policy.authorize import BadToken
from hostmesh.wire.snapshot import Unit

Token = Mapping[str, object] | BadToken | None


def configure(parser: argparse.ArgumentParser) -> None:
    """``--token FILE``, ``--claim NAME=VALUE``."""
    parser.add_argument("--token", type=Path, metavar="FILE", help="the claims of this token, as if it were good")
    parser.add_argument(
        "--claim", action="append", default=[], metavar="NAME=VALUE", help="as if a good token said so; may be repeated"
    )


def said(arguments: argparse.Namespace) -> Token:
    """All claims that were given; None if none were."""
    if not arguments.token and not arguments.claim:
        return None
    claims = _claims_of(arguments.token) if arguments.token else {}
    for text in arguments.claim:
        name, equals, value = text.partition("=")
        if not equals:
            raise HostmeshError(f"{text!r} is no claim", "for example: --claim role=buyer, --claim level=3")
        claims[name] = _value(value)
    return claims


def as_token(unit: Unit, token: Token) -> Token:
    """What the unit takes for the token: issuer and audience, where none was given, are those that it believes."""
    if not unit.jwt or not isinstance(token, Mapping):
        return None
    return {"iss": unit.jwt[0].issuer, "aud": unit.jwt[0].audience, **token}


def _value(text: str) -> object:
    """JSON, where it is some; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _claims_of(file: Path) -> dict[str, object]:
    try:
        payload = file.read_text().strip().split(".")[1]
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (OSError, IndexError, ValueError, binascii.Error) as error:
        raise HostmeshError(f"{file}: no token that can be read: {error}", "HEADER.CLAIMS.SIGNATURE") from error
    if not isinstance(claims, dict):
        raise HostmeshError(f"{file}: its claims are no object")
    return claims
