"""What wrk(1) says of its requests."""

import re


def all_answered(said: str) -> int:
    """How many requests it made; AssertionError unless each was answered with 2xx or 3xx."""
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    return int(re.findall(r"(\d+) requests in", said)[0])
