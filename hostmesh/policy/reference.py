"""Turns the schema of policies into `docs/policy.md`. A test checks that the page is current."""

from hostmesh.policy.keys import Key, Table
from hostmesh.policy.schema import TABLES

_HEAD = """\
# Policy reference

<!-- Generated from hostmesh/policy/schema.py by `python -m hostmesh.cli.reference`. Do not edit. -->

One file a unit: `/etc/hostmesh/policies/UNIT.toml`, for example `inventory.service.toml`; `hostmesh check PATH…` reads
files before they are there. A file that does not pass is refused whole, and what was in force stays in force.

- *Duration*: a whole number with its unit, `"250ms"`, `"10s"`, `"1m"`, `"1h"`; at most a day.
- *Default*: what silence means.
- Order of judgement: a unit may call itself; any `deny` that fits refuses; any `allow` that fits lets in; everybody
  else is refused. Callers without identity are judged by `[[inbound.plaintext]]` alone.
- A change counts for what is open too: a connection that the new policy denies is reset at once, a request without a
  response yet is answered 403 (or 400), a response under way is broken off. What is allowed notices nothing.
- Unknown keys are errors.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_HEAD, *map(_section, TABLES)])


def _section(table: Table) -> str:
    rows = "\n".join(map(_row, table.keys))
    head = "| key | type | default | meaning | example |\n| --- | --- | --- | --- | --- |"
    return f"## {_title(table)}\n\n{table.meaning}\n\n{head}\n{rows}\n"


def _title(table: Table) -> str:
    if not table.name:
        return "The file"
    doubled = any(key.example == f"[[{table.name}]]" for known in TABLES for key in known.keys)
    return f"`[[{table.name}]]`" if doubled else f"`[{table.name}]`"


def _row(key: Key) -> str:
    cells = (f"`{key.name}`", key.type, key.default, key.meaning, f"`{key.example}`")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
