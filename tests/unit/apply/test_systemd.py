"""The bus and the door to units where the bus fails them; that they work is tried on real hosts (tests/host)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageType

from hostmesh.apply.bus import Bus, BusError
from hostmesh.apply.systemd import JobFailed, Systemd

JOB = "/org/freedesktop/systemd1/job/7"


class Lost(Bus):
    """A bus that takes a job and does as it is told: ``result`` comes by signal, or the connection ends."""

    def __init__(self, door: Systemd, result: str | None) -> None:
        self.door, self.result, self.ended = door, result, asyncio.Event()

    @property
    def connected(self) -> bool:
        return True

    async def gone(self) -> None:
        await self.ended.wait()

    async def call(self, member: str, signature: str = "", *body: object, **_: object) -> list[Any]:
        asyncio.get_running_loop().call_soon(self.end)
        return [JOB]

    def end(self) -> None:
        if self.result is None:
            self.ended.set()
            return
        signal = Message(
            path="/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager", member="JobRemoved",
            message_type=MessageType.SIGNAL, signature="uoss", body=[7, JOB, "mesh-a.slice", self.result],
        )  # fmt: skip
        self.door._on_job_removed(signal)


def start(result: str | None) -> None:
    async def go() -> None:
        door = Systemd()
        door._bus = Lost(door, result)
        await asyncio.wait_for(door.start("mesh-a.slice"), 5)

    asyncio.run(go())


def test_a_job_ends_with_its_signal() -> None:
    start("done")
    with pytest.raises(JobFailed, match=r"StartUnit mesh-a\.slice: dependency"):
        start("dependency")


def test_a_bus_that_goes_away_under_a_job_is_told_at_once_not_after_90_s() -> None:
    with pytest.raises(BusError, match="went away before the job's end"):
        start(None)


def test_no_bus_says_what_to_look_at(tmp_path: Path) -> None:
    async def go() -> None:
        await Systemd(f"unix:path={tmp_path}/none").is_active("web.service")

    with pytest.raises(BusError, match=r"is dbus\.service running"):
        asyncio.run(go())
