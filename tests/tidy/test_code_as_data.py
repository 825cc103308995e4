"""The code base, tested as data: its laws (docs/architecture.md) are held here, not by good will."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = ("errors.py", "names.py", "wire", "policy", "identity", "registry", "plan")
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70


def tracked(*patterns: str) -> list[Path]:
    """The files of the repository that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    files = sorted({ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()})
    assert files, f"no file matches {patterns}: the test looks at nothing"
    return files


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_import_contracts() -> None:
    lint = subprocess.run(
        [ROOT / ".venv/bin/lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert "3 kept, 0 broken" in lint.stdout


def test_files_fit_in_a_head() -> None:
    lengths = {
        p: len(p.read_text().splitlines())
        for p in tracked("hostmesh/**.py", "proxy/**.rs", "tests/**.py", "bench/**.py", "demo/**.py", "vm-tests/**.py")
    }
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_FILE_LINES}
    assert not long


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in tracked("hostmesh/**.py")
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


def test_every_module_says_what_it_is() -> None:
    for path in tracked("hostmesh/**.py"):
        text = path.read_text()
        if path.name == "__init__.py":
            assert text == "", f"{path}: one name, one path"
        else:
            assert ast.get_docstring(ast.parse(text)), f"{path}: no docstring"


def test_every_rust_file_says_what_it_is() -> None:
    for path in tracked("proxy/**.rs"):
        assert re.match(r"(#!.*\n)*//!", path.read_text()), f"{path}: no module documentation"


def test_no_room_without_a_name() -> None:
    names = [p.stem for p in tracked("hostmesh/**.py", "proxy/**.rs")]
    assert not {"utils", "util", "helpers", "common", "misc"} & set(names)


def test_pure_stages_open_nothing() -> None:
    """The import contract cannot see the builtin `open`, nor clocks reached through datetime."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked("hostmesh/**.py")
        if path.relative_to(ROOT / "hostmesh").parts[0] in PURE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id in {"open", "input", "print"})
            or (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in {"now", "utcnow", "today", "uuid4", "urandom"}
            )
        )
    ]
    assert not found


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of somebody's machine", r"/(work|root|home)/\w+"),
        (
            "a package registry's host name",
            r"(pypi\.org|pythonhosted\.org|deb\.debian\.org|static\.crates\.io|registry\.npmjs)",
        ),
        ("a private key", r"-----BEGIN (EC |RSA )?PRIVATE KEY"),
    ],
)
def test_nothing_that_belongs_elsewhere(what: str, pattern: str) -> None:
    found = []
    for path in tracked("*"):
        if path == Path(__file__) or path.name == "Cargo.lock":
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in re.finditer(pattern, text)]
    assert not found, what


def test_shell_is_never_used_by_the_product() -> None:
    for path in tracked("hostmesh/**.py"):
        assert not re.search(r"\b(subprocess|os\.system|os\.popen|shell=True)\b", path.read_text()), path
