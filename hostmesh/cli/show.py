"""Turns rows into a table for people, and values into JSON for programs."""

import argparse
from collections.abc import Sequence


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that every table has."""
    parser.add_argument("--json", action="store_true", help="for programs")


def print_json(value: object) -> None:
    """One indented JSON document."""
    import msgspec  # noqa: PLC0415  a fifth of the start-up, and `check` does without

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_json_line(value: object) -> None:
    """One JSON document on one line: one of many."""
    import msgspec  # noqa: PLC0415  as above

    print(msgspec.json.encode(value).decode())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the last one is not padded."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def moment(seconds: int) -> str:
    """A time since the epoch, in this machine's zone; ``never`` for 0."""
    from datetime import datetime  # noqa: PLC0415  only tables with times need it

    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else "never"
