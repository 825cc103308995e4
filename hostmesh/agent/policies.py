"""Turns the policy folder into the policies in force: all of it, or, if anything doesn't pass, those of before."""

from collections.abc import Mapping
from pathlib import Path

from hostmesh.errors import Diagnostic, PolicyError
from hostmesh.observe.written import policy_texts
from hostmesh.policy.model import Policy
from hostmesh.policy.validate import load


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
            self._texts = self._read()
            if self._texts == before:
                return False
            self.policies = load(self._texts)
        except PolicyError as error:
            findings = error.diagnostics
        changed = not findings or findings != self.findings
        self.findings = findings
        return changed

    def _read(self) -> dict[str, str]:
        return policy_texts([self._folder]) if self._folder.is_dir() else {}

    def with_changes(self, changes: Mapping[str, str]) -> tuple[Policy, ...]:
        """What would be in force if these files (name to text, empty: removed) were there too. Raises PolicyError."""
        texts = self._read()
        for name, text in changes.items():
            path = str(self._folder / Path(name).name)
            texts.pop(path, None)
            if text:
                texts[path] = text
        return load(texts)
