"""Ports that are `auto`, through two real hosts: protocols by Debian's own clients, and what rules make of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.door import Door, banner, keys, ssh
from tests.mesh.extra import HERE, OURS, Extra, Served
from tests.mesh.gates import all_added, ask, certified, gate
from tests.mesh.secure_postgres import psql, secured
from tests.mesh.world import POLICIES, TRUST_DOMAIN, World

pytestmark = pytest.mark.lab
A_CALL = 0.02
DOOR = Door("door", 2222, "auto")
ECHO = Extra("echo", 8051, "auto", "grpc_server.py", python=OURS)
SHY = Extra("shy", 8104, "auto", "shy_server.py")
GATE = gate("gate", 8443, "auto")
STOCK = {"nginx.service": "http", "redis-server.service": "tcp", "postgresql@15-main.service": "tcp"}
SHOP = '[observe]\naccess_log = "all"\n'
CLIENT = (Path(HERE) / "plain_client.py").read_text()
# A request that is none by RFC 9112, and may be one for an application.
GARBLED = [
    r" GET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"GET  /admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"GET\t/admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"\nGET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"\x00GET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"GET /admin HTTP/1.2\r\nHost: web\r\n\r\n",
    r"GET /admin\r\n",
    r"GET /admin HTTP/1.1 \r\nHost: web\r\n\r\n",
    r"\x16GET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"\x16\x03\x01\x00\x05GET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
    r"PRI * HTTP/2.0\r\n\r\nGET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
]


@dataclass(frozen=True)
class Auto:
    """The world with every port `auto`."""

    world: World

    def told(self, cursor: str, **fields: str) -> list[dict[str, str]]:
        """Lines of shop since then, waited for."""
        return self.world.denials(self.world.h1, after=cursor, HOSTMESH_UNIT="shop.service", **fields)


@pytest.fixture(scope="module")
def auto(mesh: World) -> Iterator[Auto]:
    with (
        keys(mesh),
        certified(mesh, {"gate": ("gate",)}),
        all_added(mesh, DOOR, ECHO, SHY, GATE),
        mesh.changed_policy(mesh.h1, "shop.service", SHOP),
        mesh.changed_policy(mesh.h2, "nginx.service", as_auto(mesh, "nginx.service")),
        mesh.changed_policy(mesh.h2, "redis-server.service", as_auto(mesh, "redis-server.service")),
        mesh.changed_policy(mesh.h2, "postgresql@15-main.service", as_auto(mesh, "postgresql@15-main.service")),
    ):

        def known() -> bool:
            services = mesh.services(mesh.h1)
            ports = [port for name in ("web", "redis", "postgres") for port in services[name]["ports"]]
            return all(port["protocol"] == "auto" for port in ports) and in_force.records_all(mesh.h1, "shop.service")

        wait_until(known, "h1 knows that all ports are auto", 20.0, 0.1)
        yield Auto(mesh)


def as_auto(w: World, unit: str) -> str:
    return w.policy(unit).replace(f'"{STOCK[unit]}"', '"auto"')


def said(w: World, service: str, port: int, *steps: str) -> tuple[str, str]:
    answer = json.loads(w.shop("python3", "-c", CLIENT, service, str(port), *steps).must().stdout)
    return answer["received"], answer["how"]


def test_requests_are_read(auto: Auto) -> None:
    w, cursor = auto.world, auto.world.h1.journal_cursor()
    curl = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} ", "http://web/", "-o", "/dev/null", "http://web/no")
    assert w.shop(*curl).must().stdout == "200 404 "
    for path in ("/", "/no"):
        [line] = auto.told(cursor, HOSTMESH_KIND="request", HOSTMESH_PATH=path)
        assert (line["HOSTMESH_PROTOCOL"], line["HOSTMESH_PEER"]) == ("http", f"spiffe://{TRUST_DOMAIN}/unit/nginx")


def test_grpc_is_http2(auto: Auto) -> None:
    w, cursor = auto.world, auto.world.h1.journal_cursor()
    called = json.loads(Served(w, ECHO).client("grpc_client.py", "echo:8051", "unary").must().stdout)
    assert called == {"body": "hello", "peer": f"spiffe://{TRUST_DOMAIN}/unit/shop", "length": "5", "large": True}
    assert {line["HOSTMESH_PROTOCOL"] for line in auto.told(cursor, HOSTMESH_KIND="request")} == {"http2"}


def test_redis_and_postgres_are_bytes(auto: Auto) -> None:
    w, cursor = auto.world, auto.world.h1.journal_cursor()
    assert w.shop("redis-cli", "-h", "redis", "ping").must().stdout.strip() == "PONG"
    assert w.shop("sh", "-c", r"printf 'GET /nothing\r\nQUIT\r\n' | nc -N redis 6379").must().stdout == "$-1\n+OK\n"
    with secured(w):
        version = "select version from pg_stat_ssl where pid = pg_backend_pid()"
        assert psql(w, "verify-full", version).must().stdout.strip() == "TLSv1.3"
        assert psql(w, "disable", "select 1").must().stdout.strip() == "1"
    for service in ("redis", "postgres"):
        lines = auto.told(cursor, HOSTMESH_KIND="connection", HOSTMESH_SERVICE=service)
        assert {line["HOSTMESH_PROTOCOL"] for line in lines} == {"tcp"}


def test_who_speaks_first_is_not_held_back(auto: Auto) -> None:
    door = Served(auto.world, DOOR)
    assert ssh(door, "hostname").must().stdout == "h2\n"
    meshed, direct = banner(door)
    print(f"first byte of sshd on an auto port: meshed {meshed}, direct {direct}")
    assert meshed.shortest < direct.shortest + A_CALL
    assert meshed.median < direct.median + A_CALL


def test_tls_is_passed_through(auto: Auto) -> None:
    cursor = auto.world.h1.journal_cursor()
    assert ask(auto.world, GATE, "gate").must().stdout == "gate TLSv1.3\n"
    [line] = auto.told(cursor, HOSTMESH_KIND="connection", HOSTMESH_SERVICE="gate")
    assert (line["HOSTMESH_SNI"], line["HOSTMESH_PROTOCOL"]) == ("gate", "tls")


def test_three_bytes_that_may_begin_a_request_are_answered(auto: Auto) -> None:
    """The client waits for the server, which waits for just these: no proxy may wait as well."""
    received, how = said(auto.world, "shy", SHY.port, r"GET|got GET\r\n", r" / HTTP/1.1\r\n| / HTTP/1.1\r\n")
    assert (received, how) == ("got GET\r\n / HTTP/1.1\r\n", "open")


def test_rules_about_requests_let_in_requests_only(auto: Auto) -> None:
    w = auto.world
    rules = as_auto(w, "nginx.service") + 'methods = ["GET"]\n'
    with w.changed_policy(w.h2, "nginx.service", rules):
        get = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://web/")
        wait_until(lambda: w.shop(*get, "-X", "POST").must().stdout == "403", "the rule is in force", 10.0, 0.1)
        assert w.shop(*get).must().stdout == "200"
        refused(w, "no-allow")


def test_what_is_denied_to_requests_no_bytes_get(auto: Auto) -> None:
    w = auto.world
    rules = as_auto(w, "nginx.service") + '[[inbound.deny]]\nfrom = ["*"]\npaths = ["/admin", "/admin/*"]\n'
    line = rules[: rules.index("[[inbound.deny]]")].count("\n") + 1
    with w.changed_policy(w.h2, "nginx.service", rules):
        get = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}")
        wait_until(lambda: w.shop(*get, "http://web/admin").must().stdout == "403", "the rule is in force", 10.0, 0.1)
        assert w.shop(*get, "http://web/").must().stdout == "200"
        refused(w, str(line))


def refused(w: World, rule: str) -> None:
    """No garbled request is answered by the application; each is refused by the rule."""
    cursor = w.h2.journal_cursor()
    for garbled in GARBLED:
        received, how = said(w, "web", 80, garbled + "|nothing that comes")
        assert (received, how) == ("", "ConnectionResetError"), garbled

    def told() -> list[dict[str, str]] | None:
        lines = w.h2.journal(after=cursor, HOSTMESH_UNIT="nginx.service", HOSTMESH_VERDICT="deny")
        return lines if len(lines) >= len(GARBLED) else None

    lines = wait_until(told, "each has a line", 10.0, 0.1)
    assert {line["HOSTMESH_RULE"] for line in lines} == {f"{POLICIES}/nginx.service.toml:{rule}"}


def test_a_limit_counts_requests_of_what_becomes_http(auto: Auto) -> None:
    w = auto.world
    rules = as_auto(w, "nginx.service") + '[[inbound.limit]]\nmethods = ["GET"]\nrate = "6/h"\nburst = 1\n'
    with w.changed_policy(w.h2, "nginx.service", rules):

        def is_known() -> bool:
            unit = in_force.unit(w.h2, "nginx.service")
            return unit is not None and len(unit["limits"]) == 1

        wait_until(is_known, "the limit is in force", 10.0, 0.1)
        curl = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://web/")
        assert [w.shop(*curl, *more).must().stdout for more in ([], [], ["-I"])] == ["200", "429", "200"]


def test_on_one_host_and_in_plain_text(auto: Auto) -> None:
    """orders runs where shop does, and its policy names plain-text processes of its host, for one path."""
    w = auto.world
    rules = w.policy("orders.service").replace('"http"', '"auto"')
    rules = rules.replace('from = ["shop"]', 'from = ["shop"]\nmethods = ["GET"]')
    rules = rules.replace("ports = [8081]", 'ports = [8081]\npaths = ["/orders/*"]')
    plain = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5")
    with w.changed_policy(w.h1, "orders.service", rules):
        url = "http://127.0.0.1:8081"
        wait_until(lambda: w.h1.exec([*plain, f"{url}/no"]).stdout == "403", "the rules are in force", 10.0, 0.1)
        assert w.h1.exec([*plain, f"{url}/orders/7"]).must().stdout == "200"
        assert w.h1.exec(["sh", "-c", "printf 'hello\\r\\n' | nc -N 127.0.0.1 8081"]).stdout == ""
        assert w.shop(*plain, "http://orders:8081/orders/7").must().stdout == "200"
        assert w.shop(*plain, "-X", "POST", "http://orders:8081/orders/7").must().stdout == "403"
        assert w.shop(*plain, f"{url}/orders/7").must().stdout == "200"
        assert said(w, "orders", 8081, r"hello\r\n\r\n|nothing") == ("", "ConnectionResetError")
    wait_until(lambda: w.h1.exec([*plain, f"{url}/no"]).stdout == "200", "the demo's rules are back", 10.0, 0.1)
