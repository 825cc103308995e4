"""Runs one Python target under atheris, with libFuzzer's options: ``python -m tests.fuzz.drive policy CORPUS…``."""

import importlib
import sys

import atheris


def main() -> None:
    """Instrument what is fuzzed, then fuzz it."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["hostmesh", "tomli", "tomllib"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    atheris.Setup(sys.argv, target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
