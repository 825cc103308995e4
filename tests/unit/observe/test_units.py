"""Where a unit's processes are, by systemd's word, and what is said of those that are not in their mesh slice."""

import pytest

from hostmesh.names import UnitName
from hostmesh.observe.units import UnitState

WEB = UnitName("web.service")
HOME = f"/{WEB.cgroup}/web.service"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (UnitState("active", "running", HOME, 7, WEB.slice), ""),
        (UnitState("active", "running", HOME, 7, "other.slice"), ""),
        (UnitState("active", "exited", "", 0, "other.slice"), ""),
        (UnitState("inactive", "dead", "", 0, "other.slice"), ""),
        (UnitState("active", "running", "/system.slice/web.service", 7, WEB.slice), "its processes are from before"),
        (UnitState("reloading", "reload", "/other.slice/web.service", 7, "other.slice"), "its Slice= is other.slice"),
        (UnitState("active", "running", f"/{WEB.cgroup}x/web.service", 7, "x.slice"), "its Slice= is x.slice"),
    ],
)
def test_who_is_outside_and_why(state: UnitState, why: str) -> None:
    said = state.outside(WEB)
    assert said.startswith(why) and bool(said) == bool(why), said
