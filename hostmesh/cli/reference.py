"""Prints `docs/policy.md`: `python -m hostmesh.cli.reference > docs/policy.md`."""

from hostmesh.policy.reference import reference

if __name__ == "__main__":
    print(reference(), end="")
