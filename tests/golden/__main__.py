"""Turns `policies/` and each folder's facts.json into goldens anew:  python -m tests.golden

Look at the difference before you commit it: it is what hosts will do differently.
"""

from tests.golden.make import FACTS, FOLDER, POLICIES, made, write


def main() -> None:
    for example in sorted(POLICIES.glob("*.toml")):
        folder = FOLDER / example.stem
        if not (folder / "facts.json").exists():
            folder.mkdir(exist_ok=True)
            (folder / "facts.json").write_text(FACTS)
        write(folder, made(example))
        print(f"{example.name}: {', '.join(sorted(made(example)))}")


main()
