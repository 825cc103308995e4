"""Path templates: ``/products/{id}`` and ``/static/*``. Twin of `proxy/core/src/template.rs`.

A variable is one whole segment, not empty; a ``*`` at the end is any rest, none too.
"""

import re
from dataclasses import dataclass

from hostmesh.names import BadName
from hostmesh.policy.paths import AmbiguousPath, normal_path

_VARIABLE = re.compile(r"(?<=/)\{([A-Za-z0-9_-]+)\}(?=/|\Z)")
_EXAMPLE = "for example: /products/7, /products/* or /products/{id}"


@dataclass(frozen=True, slots=True)
class Captured:
    """What a template's variables, and its star, stand for in one path."""

    values: dict[str, str]
    rest: str


@dataclass(frozen=True, slots=True)
class Template:
    """A path with variables."""

    text: str
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Raises `BadName`, whose text is a finding."""
        plain = text.removesuffix("*")
        if not text.startswith("/") and text != "*":
            raise BadName(f"{text!r} is not a path: it begins with a slash", f"did you mean {'/' + text!r}?")
        if "*" in plain:
            raise BadName(f"{text!r}: a '*' stands at the end only", _EXAMPLE)
        if "?" in plain or "#" in plain:
            raise BadName(f"{text!r}: a path has no query", "match = { query = { … } } looks at the query")
        names = tuple(_VARIABLE.findall(plain)) if plain == text or plain.endswith("/") else ()
        literal = _VARIABLE.sub("x", plain) if names else plain
        if "{" in literal or "}" in literal:
            raise BadName(f"{text!r}: a variable is a whole segment, of letters, digits, - and _", _EXAMPLE)
        if len(set(names)) < len(names):
            raise BadName(f"{text!r}: a variable stands twice", "give the second another name")
        try:
            normal = normal_path(literal) if literal else ""
        except AmbiguousPath as error:
            raise BadName(f"{text!r} fits no path: {error}", "paths are compared in one normal form") from error
        if normal != literal:
            raise BadName(f"{text!r} fits no path: it is not in normal form", "decode what need not be encoded")
        return cls(text, names)

    @property
    def is_open(self) -> bool:
        """Whether any rest fits."""
        return self.text.endswith("*")

    def matches(self, path: str) -> Captured | None:
        """What the variables stand for in a path in normal form; None if it does not fit."""
        pattern, at = "", 0
        plain = self.text.removesuffix("*")
        for variable in _VARIABLE.finditer(plain):
            pattern += re.escape(plain[at : variable.start()]) + "([^/]+)"
            at = variable.end()
        pattern += re.escape(plain[at:]) + ("(.*)" if self.is_open else "()")
        found = re.fullmatch(pattern, path, re.DOTALL)
        return Captured(dict(zip(self.names, found.groups(), strict=False)), found.groups()[-1]) if found else None

    def why_not_from(self, other: "Template | None") -> str:
        """Why a path cannot be made of it with what a match of ``other`` knows; empty if it can."""
        lacking = set(self.names) - set(other.names if other else ())
        if lacking:
            return f"the match has no variable {min(lacking)!r}"
        if self.is_open and not (other and other.text.endswith("/*") and self.text.endswith("/*")):
            return "a '*' is filled with the rest of a match that ends in '/*', behind a slash"
        return ""

    def fill(self, captured: Captured) -> str:
        """The path that a match makes of it."""
        plain = _VARIABLE.sub(lambda variable: captured.values[variable[1]], self.text.removesuffix("*"))
        return plain + (captured.rest if self.is_open else "")
