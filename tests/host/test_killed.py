"""The agent killed after every step that the executor lists: its next life ends at the same state as one not killed."""

import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostmesh.plan.diff import Change
from tests.lab.host import Host
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab
AGENT = (Path(__file__).parent / "killed_agent.py").read_text()
WEB = '[service]\nname = "web"\n[service.ports]\n8080 = "http"\n[[inbound.allow]]\nfrom = ["orders"]\n'
PLAINTEXT = '[[inbound.plaintext]]\nfrom = ["198.18.0.0/24", "local"]\nports = [8080]\n'
OTHER_WEB = f'{WEB}{PLAINTEXT}[outbound]\nallow = ["198.18.0.9:53"]\n'
MAIL = '[service]\nname = "mail"\n[service.ports]\n2525 = "tcp"\n[inbound]\nmode = "audit"\n'
ONE, TWO = {"web.service.toml": WEB}, {"web.service.toml": WEB, "mail.service.toml": MAIL}
TRANSITIONS = (
    ("first apply", None, ONE),
    ("one unit more", ONE, TWO),
    ("one unit less", TWO, ONE),
    ("another policy", ONE, {"web.service.toml": OTHER_WEB}),
    ("all policies gone", TWO, {}),
    ("removal of all", TWO, None),
)


@pytest.fixture(scope="module")
def host(hostmesh_wheels: Path) -> Iterator[Host]:
    """A host with proxy and guard; its agent ran once, for its folders, and is stopped."""
    with Lab(("h1",), layers=[hostmesh_wheels]) as lab:
        for unit in ("web", "mail"):
            lab["h1"].write(f"/etc/systemd/system/{unit}.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n")
        lab["h1"].systemctl("daemon-reload")
        lab["h1"].systemctl("start", "web.service", "mail.service")  # what is not loaded needs no reload
        lab["h1"].systemctl("start", "hostmeshd.service")
        lab["h1"].systemctl("stop", "hostmeshd.service")
        yield lab["h1"]


def test_killed_after_every_step_the_next_run_ends_at_the_same_state(
    host: Host, rounds: Callable[[int, int], int]
) -> None:
    run = ["/opt/hostmesh/bin/python", "-c", AGENT, json.dumps(TRANSITIONS), str(rounds(1, 1000))]
    told = json.loads(host.exec(run, timeout=300).must().stdout)
    for name, seen in told.items():
        print(f"{name}: killed after {len(seen['kinds'])} steps")
        assert seen["differ"] == {}, name
    kinds = {kind for seen in told.values() for kind in seen["kinds"]}
    every = {kind.__name__ for kind in typing.get_args(Change)}
    assert kinds == every, "a kind of step that no transition has was killed nowhere"
