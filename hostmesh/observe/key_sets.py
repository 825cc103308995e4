"""Turns the place of a token issuer's keys, a URL or a path, into the text that is there. Blocks: for a thread."""

import re
import ssl
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from hostmesh.errors import HostmeshError

MAX_BYTES = 256 * 1024
SECONDS = 5.0
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=([0-9]{1,9})(?:$|[\s,])", re.IGNORECASE)


class NotRead(HostmeshError):
    """What is there could not be had."""


@dataclass(frozen=True, slots=True)
class Read:
    """The text, and for how many seconds its server says that it is good; None where that is not said."""

    text: str
    max_age: int | None = None


def read(place: str) -> Read:
    """Raises `NotRead`."""
    try:
        data, max_age = (_file(place), None) if place.startswith("/") else _fetched(place)
    except (OSError, HTTPException) as error:
        raise NotRead(f"{type(error).__name__}: {error}") from error
    if len(data) > MAX_BYTES:
        raise NotRead(f"more than {MAX_BYTES} bytes")
    return Read(data.decode(errors="replace"), max_age)


def _file(place: str) -> bytes:
    with Path(place).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _fetched(place: str) -> tuple[bytes, int | None]:
    """One GET. No redirect is followed: it could lead past what policy says of the way."""
    url, ends = urlsplit(place), time.monotonic() + SECONDS
    assert url.hostname
    connection = (
        HTTPSConnection(url.hostname, url.port, timeout=SECONDS, context=ssl.create_default_context())
        if url.scheme == "https"
        else HTTPConnection(url.hostname, url.port, timeout=SECONDS)
    )
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", target, headers={"Accept": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        if answer.status != 200:
            where = answer.getheader("Location", "")
            raise NotRead(f"answered {answer.status}" + (f", to {where[:200]}: name that one" if where else ""))
        data = b""
        while len(data) <= MAX_BYTES and (more := answer.read1(65536)):
            data += more
            if time.monotonic() > ends:
                raise NotRead(f"not whole after {SECONDS:.0f} s")
        said = _MAX_AGE.search(answer.getheader("Cache-Control", ""))
        return data, int(said[1]) if said else None
    finally:
        connection.close()
