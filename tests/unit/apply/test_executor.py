"""Check, do, verify: a step that is so is left alone, one that fails ends the run and names itself."""

import asyncio
from collections.abc import Sequence

import pytest

from hostmesh.apply.executor import Doors, StepFailed, apply
from hostmesh.errors import HostmeshError
from hostmesh.plan.diff import Change, ChangeRuleset, ReloadUnits, RemoveFile, SetSysctl, StartSlice, WriteFile


class Door:
    """Files, units, sysctls and firewall of a host that keeps what it is told, but for what is ``broken``."""

    def __init__(self, broken: str = "") -> None:
        self.files: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.active: set[str] = set()
        self.calls: list[str] = []
        self.broken = broken

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def write(self, path: str, text: str) -> None:
        self.calls.append(f"write {path}")
        if self.broken != "undone":
            self.files[path] = text

    def remove(self, path: str) -> None:
        self.calls.append(f"remove {path}")
        self.files.pop(path)

    def get(self, key: str) -> str:
        return self.values.get(key, "0")

    def set(self, key: str, value: str) -> None:
        self.calls.append(f"set {key}")
        if self.broken == "disk":
            raise OSError(28, "No space left on device")
        self.values[key] = value

    def run(self, text: str) -> None:
        self.calls.append(f"nft {text}")
        if self.broken == "nft":
            raise HostmeshError("nft: Error: syntax error")

    async def is_active(self, unit: str) -> bool:
        return unit in self.active

    async def start(self, unit: str) -> None:
        self.calls.append(f"start {unit}")
        self.active.add(unit)

    async def reload(self) -> None:
        self.calls.append("reload")


CHANGES = (
    WriteFile("/etc/a.conf", "a"),
    RemoveFile("/etc/b.conf"),
    ReloadUnits(),
    StartSlice("mesh-a.slice"),
    SetSysctl("net.a", "1"),
    ChangeRuleset("load", "table"),
)


def run(door: Door, changes: Sequence[Change] = CHANGES) -> list[str]:
    done: list[str] = []
    doors = Doors(door, None, door, door, door, None)  # type: ignore[arg-type]
    try:
        asyncio.run(apply(changes, doors, done.append))
    except StepFailed as error:
        done.append(str(error))
    return done


def test_each_step_has_its_effect_and_its_line() -> None:
    door = Door()
    door.files["/etc/b.conf"] = "b"
    assert run(door) == [change.name for change in CHANGES]
    assert door.calls == [
        "write /etc/a.conf", "remove /etc/b.conf", "reload", "start mesh-a.slice", "set net.a", "nft table"
    ]  # fmt: skip


def test_what_is_so_already_is_left_alone() -> None:
    door = Door()
    door.files["/etc/a.conf"] = "a"
    door.active.add("mesh-a.slice")
    door.values["net.a"] = "1"
    assert run(door) == ["systemd: daemon-reload", "ruleset: load"]
    assert door.calls == ["reload", "nft table"]


@pytest.mark.parametrize(
    ("broken", "last", "said"),
    [
        ("undone", "write /etc/a.conf", "write /etc/a.conf: done, but it is not so"),
        ("disk", "set net.a", "sysctl net.a=1: [Errno 28] No space left on device"),
        ("nft", "nft table", "ruleset: load: nft: Error: syntax error"),
    ],
)
def test_a_step_that_fails_ends_the_run(broken: str, last: str, said: str) -> None:
    door = Door(broken)
    done = run(door)
    assert door.calls[-1] == last
    assert done[-1].startswith(said)
    assert said.split(":", maxsplit=1)[0] not in done[:-1]
