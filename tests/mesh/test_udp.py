"""UDP of meshed units between two real hosts: what policy lists passes, all else is refused at once and told."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.waiting import wait_until
from tests.mesh.extra import HERE, added
from tests.mesh.told import total
from tests.mesh.world import POLICIES, World

pytestmark = pytest.mark.lab
LISTED, OTHER, MESHED = 9301, 9302, 9303
# Asks once; what came, or how it failed, and after how long.
ASK = """
import errno, json, socket, sys, time
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(1.5)
begun = time.monotonic()
try:
    asking.connect((sys.argv[1], int(sys.argv[2])))
    asking.send(b"hello")
    said = asking.recv(100).decode()
except TimeoutError:
    said = "silence"
except OSError as error:
    said = errno.errorcode[error.errno]
print(json.dumps([said, time.monotonic() - begun]))
"""
ECHO = (HERE / "udp_echo.py").read_text()
UNIT = "[Service]\nType=notify\nDynamicUser=yes\nExecStart=/usr/bin/python3 /opt/echo-udp.py {port}\n"


@pytest.fixture(scope="module")
def echoes(mesh: World) -> Iterator[World]:
    """Two echoes on a host that is not of the mesh, and shop may ask one of them."""
    program = ["/usr/bin/python3", "-c", ECHO]
    policy = f'[outbound]\nallow = ["{mesh.outsider.ipv4}/32:{LISTED}"]\n'
    with (
        mesh.outsider.unit([*program, str(LISTED)], properties=["Type=notify"]),
        mesh.outsider.unit([*program, str(OTHER)], properties=["Type=notify"]),
        mesh.changed_policy(mesh.h1, "shop.service", policy),
    ):
        asked = (mesh.outsider.ipv4, LISTED)
        wait_until(lambda: ask(mesh, *asked)[0] == "hello", "what is listed passes", 10.0, 0.1)
        yield mesh


def ask(w: World, address: str, port: int) -> tuple[str, float]:
    """As shop."""
    said, seconds = json.loads(w.shop("python3", "-c", ASK, address, str(port)).must().stdout)
    return said, seconds


def test_what_is_not_listed_is_refused_at_once_and_told(echoes: World) -> None:
    w, rule = echoes, f"{POLICIES}/shop.service.toml:no-outbound"
    assert ask(w, w.outsider.ipv4, LISTED)[0] == "hello"
    refused = "hostmesh_kernel_refused_packets_total"
    counted, cursor = total(w.h1, refused, unit="shop.service", rule=rule), w.h1.journal_cursor()
    for address, port in ((w.outsider.ipv4, OTHER), (w.h2.ipv4, LISTED)):
        said, seconds = ask(w, address, port)
        assert said in ("EPERM", "EHOSTUNREACH") and seconds < 0.5, (said, seconds)
    line = w.denials(w.h1, after=cursor, HOSTMESH_UNIT="shop.service", HOSTMESH_VERDICT="deny")[0]
    assert line["HOSTMESH_RULE"] == rule

    def grown() -> bool:
        return total(w.h1, refused, unit="shop.service", rule=rule) >= counted + 2

    wait_until(grown, "both are counted", 10.0, 0.2)


def test_nothing_comes_to_a_meshed_unit_but_answers(mesh: World) -> None:
    """The unit of h2 serves its own host, and is closed to the network: to units of the mesh, and to others."""
    policy = '[service]\nname = "echo-udp"\n[[inbound.allow]]\nfrom = ["*"]\n'
    with added(mesh, mesh.h2, "echo-udp.service", UNIT.format(port=MESHED), policy, **{"echo-udp": "udp_echo.py"}):
        here = json.loads(mesh.h2.exec(["python3", "-c", ASK, "127.0.0.1", str(MESHED)]).must().stdout)
        assert here[0] == "hello", here
        for host in (mesh.h1, mesh.outsider):
            said, _ = json.loads(host.exec(["python3", "-c", ASK, mesh.h2.ipv4, str(MESHED)]).must().stdout)
            assert said == "silence", host.name
