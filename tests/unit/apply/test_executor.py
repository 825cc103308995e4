"""Check, do, verify: a step that is so is left alone; one that fails names itself, and holds back what needs it."""

import asyncio
from collections.abc import Sequence

import pytest

from hostmesh.apply.executor import Doors, StepFailed, apply
from hostmesh.errors import HostmeshError
from hostmesh.plan.diff import (
    Change,
    ChangeRuleset,
    ReloadUnits,
    RemoveFile,
    SendSnapshot,
    SetSysctl,
    StartSlice,
    WriteFile,
)
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.snapshot import snapshot
from hostmesh.policy.settings import Settings
from hostmesh.wire.snapshot import Snapshot


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

    async def set_snapshot(self, snapshot: Snapshot) -> None:
        self.calls.append("snapshot")
        if self.broken == "proxy":
            raise HostmeshError("refused")


SNAPSHOT = SendSnapshot(snapshot(Settings(), (), HostFacts("h1", ()), (), ()))
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
    doors = Doors(door, None, door, door, door, door)  # type: ignore[arg-type]
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
        ("disk", "set net.a", "sysctl net.a=1: [Errno 28] No space left on device"),
        ("nft", "nft table", "ruleset: load: nft: Error: syntax error"),
    ],
)
def test_a_step_that_fails_ends_the_run_of_those_that_need_it(broken: str, last: str, said: str) -> None:
    door = Door(broken)
    done = run(door)
    assert door.calls[-1] == last
    assert done[-1].startswith(said)
    assert said.split(":", maxsplit=1)[0] not in done[:-1]


def test_a_drop_in_that_fails_holds_nothing_back() -> None:
    door = Door("undone")
    done = run(door)
    assert door.calls[1:] == ["reload", "start mesh-a.slice", "set net.a", "nft table"]
    assert done[-1] == "write /etc/a.conf: done, but it is not so\n    does another program undo it?"


def test_the_proxy_gets_its_snapshot_whatever_fails_before_it() -> None:
    door = Door("disk")
    done = run(door, (CHANGES[4], SNAPSHOT, CHANGES[5]))
    assert door.calls == ["set net.a", "snapshot"]
    assert done[0].startswith("snapshot ")


def test_without_the_snapshot_no_packet_is_sent_to_the_proxy() -> None:
    door = Door("proxy")
    run(door, (SNAPSHOT, CHANGES[5]))
    assert door.calls == ["snapshot"]


def test_all_that_failed_is_told() -> None:
    door = Door("disk")
    said = run(door, (SetSysctl("net.a", "1"), SNAPSHOT, SetSysctl("net.b", "1"), RemoveFile("/none")))
    assert said[-1] == "sysctl net.a=1: [Errno 28] No space left on device"
    door.broken = "undone"
    said = run(door, (WriteFile("/x", "x"), WriteFile("/y", "y")))
    assert "write /x: done" in said[-1] and "write /y: done" in said[-1]
