"""What a table of policy is told by: its name, its meaning, and its keys."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """One key: how its type is told, what silence means, what it is for, and an example in TOML."""

    name: str
    type: str
    default: str
    meaning: str
    example: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table; ``name`` as it is written in the file."""

    name: str
    meaning: str
    keys: tuple[Key, ...]

    @property
    def words(self) -> list[str]:
        """The names of the keys that may be written."""
        return [key.name for key in self.keys]
