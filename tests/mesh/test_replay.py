"""`hostmesh replay` over a real journal: requests that were made, judged by policies that were never in force."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.twins import POLICY, Twins
from tests.mesh.world import SCRAPER, World

pytestmark = pytest.mark.lab
NEW = "/srv/new"
ALL = '[observe]\naccess_log = "all"\n'
BEFORE = '[[inbound.allow]]\nfrom = ["guest"]\n'
REQUESTS = 30


@dataclass(frozen=True)
class Recorded:
    """What the journals have since then: others asked the same units before."""

    w: World
    since: str

    def replay(self, host: Host, policy: str, *words: str) -> tuple[int, dict[str, Any]]:
        """Exit code and answer, by twin's policy as it would be."""
        host.write(f"{NEW}/twin.service.toml", policy)
        done = host.exec(["hostmesh", "replay", "--policy", NEW, "--since", self.since, "--json", *words])
        assert done.exit in (0, 1) and done.stdout, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return done.exit, told


@pytest.fixture(scope="module")
def recorded(pair: Twins) -> Iterator[Recorded]:
    """Requests /0 to /29 of guest to the endpoint on h2, a call in plain text, all in the journals."""
    w = pair.w
    with pair.only(w.h2), w.changed_policy(w.h1, "guest.service", ALL):
        pair.treat(ALL, endpoints=1)
        for host, unit in ((w.h1, "guest.service"), (w.h2, "twin.service")):
            recorded_all = partial(in_force.records_all, host, unit)
            wait_until(recorded_all, f"{unit}'s requests are recorded", 10.0, 0.05)
        recorded = Recorded(w, datetime.now(UTC).isoformat())
        assert pair.ask(REQUESTS, pace=100).of("200") == REQUESTS
        w.outsider.exec(["curl", "-s", "--max-time", "2", f"http://{w.h2.ipv4}:9090/"])
        wait_until(
            lambda: recorded.replay(w.h2, POLICY)[1]["requests"] >= REQUESTS + 1, "the journal has all", 10.0, 0.5
        )
        yield recorded


def only_new(told: dict[str, Any], change: str) -> dict[str, Any]:
    """The one group of this kind."""
    [group] = [group for group in told["groups"] if group["change"] == change]
    found: dict[str, Any] = group
    return found


def test_the_policy_in_force_changes_nothing(recorded: Recorded) -> None:
    code, told = recorded.replay(recorded.w.h2, POLICY + ALL)
    assert (code, told["groups"], told["not_recorded"]) == (0, [], {"units": {}, "suppressed": {}})
    assert told["requests"] >= REQUESTS + 1


def test_what_would_be_denied_and_by_which_line(recorded: Recorded) -> None:
    code, told = recorded.replay(recorded.w.h2, POLICY.replace(BEFORE, BEFORE + 'methods = ["GET"]\npaths = ["/1*"]\n'))
    kept = sum(str(number).startswith("1") for number in range(REQUESTS))
    group = only_new(told, "denied")
    assert (code, told["denied"], group["count"]) == (1, REQUESTS - kept, REQUESTS - kept)
    assert (group["caller"], group["service"], group["method"], group["path"]) == ("guest", "twin", "GET", "/{}")
    assert group["was"] == "/etc/hostmesh/policies/twin.service.toml:6"
    assert group["now"] == f"{NEW}/twin.service.toml:no-allow"


def test_what_would_be_allowed(recorded: Recorded) -> None:
    plain = f'[[inbound.plaintext]]\nfrom = ["{SCRAPER}/32"]\nports = [9090]\n'
    code, told = recorded.replay(recorded.w.h2, POLICY.replace(BEFORE, BEFORE + plain))
    group = only_new(told, "allowed")
    assert (code, group["caller"], group["was"]) == (
        1,
        SCRAPER,
        "/etc/hostmesh/policies/twin.service.toml:no-plaintext",
    )
    assert group["now"] == f"{NEW}/twin.service.toml:8"


def test_what_is_not_recorded_is_not_guessed(recorded: Recorded) -> None:
    code, told = recorded.replay(recorded.w.h2, POLICY.replace(BEFORE, BEFORE + 'headers = { x-user = "user-0" }\n'))
    group = only_new(told, "unknown")
    assert (code, told["denied"], told["unknown"], group["count"]) == (0, 0, REQUESTS, REQUESTS)
    assert group["why"] == f"{NEW}/twin.service.toml:6 asks for headers or a token"


def test_routes_of_the_callers_requests(recorded: Recorded) -> None:
    route = '[[traffic.route]]\nname = "ones"\nmatch = { path = "/1*" }\nto = "twin"\n'
    code, told = recorded.replay(recorded.w.h1, POLICY + route, "--unit", "guest")
    group = only_new(told, "routed")
    assert (code, group["was"], group["now"]) == (1, "no route", f"{NEW}/twin.service.toml:9")
    assert told["routed"] == sum(str(number).startswith("1") for number in range(REQUESTS))


def test_a_person_is_told_what_was_not_recorded(recorded: Recorded) -> None:
    h2 = recorded.w.h2
    h2.write(f"{NEW}/nginx.service.toml", recorded.w.policy("nginx.service"))
    try:
        done = h2.exec(["hostmesh", "replay", "--policy", NEW, "--since", recorded.since])
    finally:
        h2.exec(["rm", f"{NEW}/nginx.service.toml"]).must()
    assert "requests since 20" in done.stdout, done
    assert 'not recorded: nginx.service: access_log = "errors": only denials and failures are recorded' in done.stdout
    unread = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "hostmesh", "replay", "--policy"]
    nobody = h2.exec([*unread, f"{NEW}/twin.service.toml"])
    assert nobody.exit == 1 and "may not read the journal" in nobody.stderr
