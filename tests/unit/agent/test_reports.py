"""Events become lines and suggestions; a flood becomes few lines and one that says how many."""

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hostmesh.agent.reports import MAX_METHODS, MAX_SUGGESTIONS, Callers, Reports, rule_of
from hostmesh.errors import HostmeshError
from hostmesh.observe.journal import Journal
from hostmesh.observe.nflog import Refusal
from hostmesh.wire.agent_control import Suggestion
from hostmesh.wire.proxy_control import Event, Events
from tests.unit.observe.test_journal import decode

EVENT = Event(
    time_ns=1, kind="request", unit="inventory.service", direction="inbound", verdict="audit-deny", rule="f:no-allow",
    peer="spiffe://m/unit/orders", service="inventory", port=8080, protocol="http", message="", client="198.18.0.1",
    method="GET", path="/",
)  # fmt: skip


class Listener:
    """A journald that keeps what it gets; ``now`` is the clock."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.server.bind(str(folder / "journal"))
        self.server.setblocking(False)
        self.journal = Journal(str(folder / "journal"))
        self.reports = Reports(self.journal, lambda: self.now)

    def lines(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                found.append(decode(self.server.recv(65536)))
            except BlockingIOError:
                return found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path)
    yield made
    made.server.close()
    made.journal.close()


def event(**values: object) -> Event:
    return msgspec.structs.replace(EVENT, **values)


def test_audited_callers_become_suggestions_the_most_frequent_first(listener: Listener) -> None:
    batch = [event(method="POST"), event(), event(peer="plaintext", client="198.18.0.7", method="GET")]
    listener.reports.events(Events(batch, 0))
    assert listener.reports.callers.of("inventory.service") == [
        Suggestion("orders", "spiffe://m/unit/orders", "198.18.0.1", 8080, ["GET", "POST"], 2),
        Suggestion("plaintext", "plaintext", "198.18.0.7", 8080, ["GET"], 1),
    ]


def test_who_is_allowed_or_calls_out_is_no_suggestion(listener: Listener) -> None:
    listener.reports.events(Events([event(verdict="allow"), event(direction="outbound"), event(verdict="deny")], 3))
    assert listener.reports.callers.of("inventory.service") == []
    assert listener.reports.dropped == 3


def test_suggestions_are_bounded_and_forgotten_when_enforced(listener: Listener) -> None:
    callers = listener.reports.callers
    for number in range(MAX_SUGGESTIONS + 10):
        callers.note(event(peer=f"spiffe://m/unit/u{number}"))
    assert len(callers.of("inventory.service")) == MAX_SUGGESTIONS
    callers.forget({"inventory.service", "unknown.service"})
    assert callers.of("inventory.service") == []


def test_suggestions_outlive_a_restart(listener: Listener) -> None:
    callers = listener.reports.callers
    listener.reports.events(Events([event(), event(peer="plaintext", client="198.18.0.7"), event(port=9)], 0))
    assert callers.changed
    after = Callers()
    after.load(callers.dump())
    after.note(event())
    assert [s.count for s in after.of("inventory.service")] == [2, 1, 1]
    with pytest.raises(HostmeshError):
        after.load("[]")


def test_a_flood_is_few_lines_and_its_number(listener: Listener) -> None:
    listener.reports.limit.lines = 5
    listener.reports.events(Events([event()] * 12, 0))
    assert len(listener.lines()) == 5
    listener.now = 60.0
    listener.reports.tick()
    (line,) = listener.lines()
    assert line["HOSTMESH_SUPPRESSED"] == "7"
    assert line["OBJECT_SYSTEMD_UNIT"] == "inventory.service"
    assert line["MESSAGE"].startswith("7 more lines of kind 'request' suppressed")


def test_what_journald_did_not_take_is_told_when_it_is_back(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "journal").rename(tmp_path / "away")
    for _ in range(3):
        listener.reports.warning("nobody hears this")
    listener.reports.tick()
    assert listener.reports.lost == 4
    (tmp_path / "away").rename(tmp_path / "journal")
    listener.reports.tick()
    listener.reports.tick()
    (told,) = listener.lines()
    assert told["HOSTMESH_LOST"] == "4" and "journald did not take them" in told["MESSAGE"]


def test_refusals_name_unit_and_rule_by_the_mark(listener: Listener) -> None:
    one = Refusal("hostmesh plaintext", 6, "198.18.0.9", 4000, "198.18.0.1", 8080, mark=3)
    listener.reports.refusals([one], {3: ("web.service", "/p/web.service.toml")})
    (line,) = listener.lines()
    assert (line["HOSTMESH_RULE"], line["HOSTMESH_UNIT"]) == ("/p/web.service.toml:no-plaintext", "web.service")


@pytest.mark.parametrize(
    ("prefix", "rule"),
    [
        ("hostmesh listener", "builtin:listener"),
        ("hostmesh plaintext", "/f:no-plaintext"),
        ("hostmesh outbound", "/f:no-outbound"),
        ("hostmesh vip", "builtin:vip"),
        ("somebody's", "somebody's"),
    ],
)
def test_rule_names(prefix: str, rule: str) -> None:
    assert rule_of(prefix, "/f") == rule


def test_a_trouble_is_told_once_and_so_is_its_end(listener: Listener) -> None:
    for trouble in ("", "no", "no", "still no", "", ""):
        listener.reports.state("apply", trouble)
    assert [line["MESSAGE"] for line in listener.lines()] == ["apply: no", "apply: still no", "apply: well again"]


def test_a_unit_outside_its_slice_is_told_once_per_reason(listener: Listener) -> None:
    for why in ("restart it", "restart it", "its Slice= is x.slice", "", "restart it"):
        listener.reports.outside({"web.service": why} if why else {})
    found = [(line["OBJECT_SYSTEMD_UNIT"], line["PRIORITY"], line["MESSAGE"]) for line in listener.lines()]
    told = ("restart it", "its Slice= is x.slice", "restart it")
    assert found == [("web.service", "4", f"NOT MESHED, no policy holds: {why}") for why in told]


def test_a_caller_that_makes_up_methods_fills_no_memory() -> None:
    callers = Callers()
    for number in range(10 * MAX_METHODS):
        callers.note(event(method=f"M{number}"))
    (seen,) = callers.of("inventory.service")
    assert (len(seen.methods), seen.count) == (MAX_METHODS, 10 * MAX_METHODS)
