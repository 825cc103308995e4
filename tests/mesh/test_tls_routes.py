"""TLS passed through and routed by the server that is asked for, through two real hosts; curl checks who answers."""

from collections.abc import Iterator

import pytest

from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.gates import all_added, ask, certified, gate
from tests.mesh.world import POLICIES, World

pytestmark = pytest.mark.lab
GATE, BLUE, GREEN = gate("gate", 8443), gate("blue", 8444), gate("green", 8445)
NAMES = {
    "gate": ("gate", "gate.example.com"),
    "blue": ("a.example.org",),
    "green": ("*.example.org", "*.b.example.org"),
}
ROUTES = """
[[traffic.route]]
name  = "blue"
match = { sni = "a.example.org" }
to    = "blue"

[[traffic.route]]
name  = "forbidden"
match = { sni = "web.example.org" }
to    = "inventory"

[[traffic.route]]
name  = "closed"
match = { sni = "redis.example.org" }
to    = "redis"

[[traffic.route]]
name  = "green"
match = { sni = "*.example.org" }
to    = "green"
"""
SHOP = '[outbound]\nallow = ["gate", "blue", "green", "inventory"]\n[observe]\naccess_log = "all"\n'
GARBLED = """
import socket, sys
with socket.create_connection(("gate", 8443), 10) as connection:
    connection.sendall(b"hello there\\r\\n\\r\\n")
    connection.settimeout(10)
    try:
        print(len(connection.recv(100)))
    except ConnectionResetError:
        print("reset")
"""


@pytest.fixture(scope="module")
def routed(mesh: World) -> Iterator[World]:
    with (
        certified(mesh, NAMES),
        all_added(mesh, GATE, BLUE, GREEN),
        mesh.changed_policy(mesh.h1, "shop.service", SHOP),
        mesh.changed_policy(mesh.h2, GATE.unit, GATE.written(ROUTES)),
    ):

        def known() -> bool:
            routes = mesh.services(mesh.h1)["gate"]["traffic"]["routes"]
            return len(routes) == 4 and in_force.records_all(mesh.h1, "shop.service")

        wait_until(known, "h1 knows the routes", 10.0, 0.05)
        yield mesh


@pytest.mark.parametrize(
    ("server", "by", "route"),
    [
        ("gate", "gate", None),
        ("gate.example.com", "gate", None),
        ("a.example.org", "blue", "blue"),
        ("A.EXAMPLE.org", "blue", "blue"),
        ("x.example.org", "green", "green"),
        ("y.b.example.org", "green", "green"),
    ],
)
def test_by_the_servers_name(routed: World, server: str, by: str, route: str | None) -> None:
    here, there = routed.h1.journal_cursor(), routed.h2.journal_cursor()
    assert ask(routed, GATE, server).must().stdout == f"{by} TLSv1.3\n"
    [line] = routed.denials(routed.h1, after=here, HOSTMESH_UNIT="shop.service", HOSTMESH_KIND="connection")
    told = (line["HOSTMESH_SNI"], line["HOSTMESH_SERVICE"], line["HOSTMESH_PROTOCOL"], line.get("HOSTMESH_ROUTE"))
    assert told == (server.lower(), by, "tls", route)
    assert not routed.h2.journal(after=there, HOSTMESH_VERDICT="deny")


def test_older_tls_and_no_name(routed: World) -> None:
    assert ask(routed, GATE, "a.example.org", "--tls-max", "1.2").must().stdout == "blue TLSv1.2\n"
    vip = routed.services(routed.h1)["gate"]["vips"][0]
    assert routed.shop("curl", "-sSk", f"https://{vip}:8443/").must().stdout == "gate TLSv1.3\n", (
        "an address is no name"
    )


def test_what_is_no_tls_reaches_the_service_itself(routed: World) -> None:
    """Nobody waits for a ClientHello that does not come: the server sees the bytes, and ends the connection."""
    cursor = routed.h2.journal_cursor()
    assert routed.shop("python3", "-c", GARBLED, timeout=10).must().stdout.strip() in ("0", "7", "reset")

    def told() -> bool:
        said = [str(entry["MESSAGE"]) for entry in routed.h2.journal(unit=GATE.unit, after=cursor)]
        return any("WRONG_VERSION_NUMBER" in line or "HTTP_REQUEST" in line for line in said)

    wait_until(told, "the server has seen them", 10.0, 0.1)


def test_where_no_route_may_lead(routed: World) -> None:
    """No TLS is spoken at inventory; redis the caller may not call."""
    for server, said in (("web.example.org", "no service that is there"), ("redis.example.org", "")):
        cursor = routed.h1.journal_cursor()
        assert ask(routed, GATE, server).exit == 35, "reset before TLS"
        [line] = routed.denials(routed.h1, after=cursor, HOSTMESH_UNIT="shop.service", HOSTMESH_SNI=server)
        assert said in line["MESSAGE"]
    assert (line["HOSTMESH_RULE"], line["HOSTMESH_SERVICE"]) == (f"{POLICIES}/shop.service.toml:no-outbound", "redis")


def test_the_service_that_a_route_leads_to_judges_the_caller(routed: World) -> None:
    """The rules of the service that a route leads to judge the caller: blue lets nobody in."""
    closed = BLUE.written().replace('from = ["shop"]', 'from = ["guest"]')
    with routed.changed_policy(routed.h2, BLUE.unit, closed):
        cursor = routed.h2.journal_cursor()
        wait_until(lambda: ask(routed, GATE, "a.example.org").exit == 35, "blue refuses shop", 10.0, 0.1)
        assert routed.denials(routed.h2, after=cursor, HOSTMESH_UNIT=BLUE.unit, HOSTMESH_VERDICT="deny")
    wait_until(lambda: ask(routed, GATE, "a.example.org").ok, "blue lets shop in again", 10.0, 0.1)


def test_many_at_once(routed: World) -> None:
    """Each connection goes where its own name leads."""
    urls = " ".join(f"{name}.example.org" for name in ("a", "x") * 20)
    one = "curl -sS --cacert /opt/gates-ca.pem --connect-to {}:8443:gate:8443 https://{}:8443/"
    said = routed.shop("sh", "-c", f"echo {urls} | tr ' ' '\\n' | xargs -P 8 -I{{}} {one}").must().stdout.split("\n")
    assert (said.count("blue TLSv1.3"), said.count("green TLSv1.3")) == (20, 20)
