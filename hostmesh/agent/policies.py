"""Turns the policy folder into the policies in force: all of it, or, if anything doesn't pass, those of before."""

from collections.abc import Mapping
from pathlib import Path

from hostmesh.errors import Diagnostic, Place, PolicyError
from hostmesh.policy.model import Policy
from hostmesh.policy.validate import load

SUFFIX = ".toml"


def read_texts(folder: Path) -> dict[str, str]:
    """The files of the folder: path to text. Raises PolicyError for those that can't be read, all at once."""
    texts: dict[str, str] = {}
    bad: list[Diagnostic] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue  # an editor's, or a temporary of whoever writes and renames
        try:
            texts[str(path)] = path.read_text()
        except FileNotFoundError:
            continue  # gone between listing and reading: not there
        except (OSError, UnicodeDecodeError) as error:
            bad.append(Diagnostic("unreadable", Place(str(path)), f"cannot be read: {error}", "UTF-8 text, as TOML is"))
    if bad:
        raise PolicyError(tuple(bad))
    return texts


class PolicyFolder:
    """The folder, and what of it is in force."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts: dict[str, str] | None = None
        self.policies: tuple[Policy, ...] = ()
        self.findings: tuple[Diagnostic, ...] = ()

    def refresh(self) -> bool:
        """Read again; True when the files or the findings are others than before. A bad set leaves `policies` alone."""
        findings: tuple[Diagnostic, ...] = ()
        before, self._texts = self._texts, None
        try:
            self._texts = read_texts(self._folder)
            if self._texts == before:
                return False
            self.policies = load(self._texts)
        except PolicyError as error:
            findings = error.diagnostics
        changed = not findings or findings != self.findings
        self.findings = findings
        return changed

    def with_changes(self, changes: Mapping[str, str]) -> tuple[Policy, ...]:
        """What would be in force if these files (name to text, empty: removed) were there too. Raises PolicyError."""
        texts = read_texts(self._folder)
        for name, text in changes.items():
            path = str(self._folder / Path(name).name)
            texts.pop(path, None)
            if text:
                texts[path] = text
        return load(texts)
