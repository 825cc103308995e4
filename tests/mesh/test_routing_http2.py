"""Routes where both sides speak HTTP/2, through two real hosts: curl and nghttpd, and grpcio on both sides."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest

from tests.lab.host import Result
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.extra import OURS, Extra, Served, added
from tests.mesh.routes import routes_of
from tests.mesh.shelf import Answer
from tests.mesh.told import total, wait_metric
from tests.mesh.world import TRUST_DOMAIN, World

pytestmark = pytest.mark.lab

ROUTES = (
    routes_of("leaf", removed="last-modified")
    + """
[[traffic.route]]
name   = "copied"
match  = { path = "/copied" }
mirror = { to = "leaf-v3", percent = 100 }

[[traffic.route]]
name   = "copied-on"
match  = { path = "/copied-on" }
mirror = { to = "leaf-v2", percent = 100 }

[[traffic.route]]
name  = "split"
match = { path = "/split" }
to    = { leaf-v2 = 10, leaf = 90 }

[[traffic.route]]
name   = "sticky"
match  = { path = "/sticky" }
to     = { leaf-v2 = 50, leaf = 50 }
sticky = "cookie:session"

[[traffic.route]]
name  = "faulty"
match = { path = "/faulty" }
fault = { abort = 500 }

[[traffic.route]]
name    = "too-late"
match   = { path = "/too-late" }
timeout = "300ms"
fault   = { delay = "30s" }
"""
)
LEAVES = {"leaf": 8094, "leaf-v2": 8095, "leaf-v3": 8096}
PAGES = (
    "/products/7",
    "/products/a/b",
    "/other/7",
    "/files/a/b.css",
    "/v2/items/7",
    "/copied",
    "/copied-on",
    "/split",
    "/sticky",
)
# Says the head of every request in its journal.
NGHTTPD = "/usr/bin/stdbuf -oL /usr/sbin/nghttpd --no-tls -v -d /opt/{name} {port}"
SHOP = '[outbound]\nallow = [{names}]\n[observe]\naccess_log = "all"\n'


@dataclass(frozen=True)
class Leaves:
    """Three versions of a service, called by shop."""

    world: World

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> Answer:
        """One request of curl, which must be answered in HTTP/2."""
        fields = [word for name, value in (headers or {}).items() for word in ("-H", f"{name}: {value}")]
        said = self.curl("-D", "/dev/stderr", "-X", method, *fields, f"http://leaf{target}")
        (version, status, *_), *lines = [line.split() for line in said.stderr.splitlines() if line.strip()]
        assert version == "HTTP/2", said.stderr
        return Answer(int(status), 0.0, {name.rstrip(":"): " ".join(value) for name, *value in lines}, said.stdout)

    def ask_often(self, target: str, count: int) -> None:
        """``GET`` so many times on one connection, ten at once; each must succeed."""
        said = self.world.shop("h2load", "-n", str(count), "-c", "1", "-m", "10", f"http://leaf{target}").must().stdout
        assert f"{count} 2xx" in said, said

    def curl(self, *flags: str) -> Result:
        """What curl gets; its errors are the test's."""
        curl = "curl", "-sS", "--max-time", "20", "--http2-prior-knowledge", "--path-as-is"
        return self.world.shop(*curl, *flags).must()

    def told(self, cursor: str, **fields: str) -> list[dict[str, str]]:
        """Lines of shop on h1, waited for."""
        return self.world.denials(self.world.h1, after=cursor, HOSTMESH_UNIT="shop.service", **fields)


@contextlib.contextmanager
def called_by_shop(world: World, extras: Mapping[str, Extra], programs: Mapping[str, str]) -> Iterator[None]:
    """Services of h2, up, meshed, with all of their routes known to h1, and shop may call them."""
    h1, names = world.h1, ", ".join(f'"{name}"' for name in extras)
    with contextlib.ExitStack() as stack:
        for name, extra in extras.items():
            files = {name: source for name, source in programs.items() if name == extra.name}
            stack.enter_context(added(world, world.h2, extra.unit, extra.unit_file, extra.written(), **files))
        stack.enter_context(world.changed_policy(h1, "shop.service", SHOP.format(names=names)))

        def known() -> bool:
            services = world.services(h1)
            units = {extra.unit for extra in extras.values()}
            if not (extras.keys() <= services.keys() and units <= set(world.serials(world.h2))):
                return False
            counts = {name: extra.policy.count("[[traffic.route]]") for name, extra in extras.items()}
            routes = {name: len(services[name]["traffic"]["routes"]) for name in extras}
            there = all(services[name]["endpoints"] for name in extras)
            return there and routes == counts and in_force.records_all(h1, "shop.service")

        wait_until(known, f"h1 knows {names} and their routes", 20.0, 0.1)
        yield


@pytest.fixture(scope="module")
def leaves(mesh: World) -> Iterator[Leaves]:
    for name in LEAVES:
        for page in PAGES:
            mesh.h2.write(f"/opt/{name}{page}", f"{name} {page}\n")
    extras = {
        name: Extra(name, port, "http2", command=NGHTTPD.format(name=name, port=port)) for name, port in LEAVES.items()
    }
    extras["leaf"] = replace(extras["leaf"], policy=ROUTES)
    extras["leaf-v3"] = Extra("leaf-v3", 8096, "http", command="/usr/bin/python3 /opt/leaf-v3.py 8096 leaf-v3")
    with called_by_shop(mesh, extras, {"leaf-v3": "shelf_server.py"}):
        yield Leaves(mesh)


FITS = [
    ("GET", "/products/7", {"x-canary": "1"}, "leaf-v2 /products/7"),
    ("GET", "/products/7", {"x-canary": "2"}, "leaf /products/7"),
    ("GET", "/products/7", {}, "leaf /products/7"),
    ("PUT", "/products/7", {"x-canary": "1"}, "leaf /products/7"),
    ("GET", "/other/7", {"x-canary": "1"}, "leaf /other/7"),
    ("GET", "/products/a/b?v=2", {}, "leaf /products/a/b"),
    ("GET", "/static/a/b.css?x=1", {}, "leaf /files/a/b.css"),
    ("GET", "/%70roducts/%37", {"x-canary": "1"}, "leaf-v2 /products/7"),
]


def test_the_first_that_fits(leaves: Leaves) -> None:
    for method, target, headers, page in FITS:
        answer = leaves.ask(method, target, headers)
        assert (answer.status, answer.body) == (200, f"{page}\n"), (method, target, headers)


def test_what_is_made_of_a_request_and_its_response(leaves: Leaves) -> None:
    h1, h2 = leaves.world.h1, leaves.world.h2
    plain = leaves.ask("GET", "/products/7")
    assert plain.headers["server"].startswith("nghttpd") and "last-modified" in plain.headers
    cursors = h1.journal_cursor(), h2.journal_cursor()
    answer = leaves.ask("POST", "/products/7?v=2", {"x-set": "old", "x-gone": "1", "x-add": "1"})
    assert (answer.status, answer.body) == (200, "leaf-v2 /v2/items/7\n")
    assert answer.headers["server"] == "mesh" and "last-modified" not in answer.headers
    [line] = leaves.told(cursors[0], HOSTMESH_ROUTE="rewritten")
    assert (line["HOSTMESH_PATH"], line["HOSTMESH_SERVICE"]) == ("/products/7", "leaf-v2")

    def whole() -> list[str]:
        lines = [entry["MESSAGE"] for entry in h2.journal(unit="leaf-v2.service", after=cursors[1])]
        return lines if any("x-hostmesh-peer" in line for line in lines) else []

    said = wait_until(whole, "nghttpd has told the request", 10.0, 0.1)
    fields = {line.partition(") ")[2] for line in said if "recv (stream_id" in line}
    assert {":method: POST", ":path: /v2/items/7?v=2", ":authority: leaf-v2.example", "x-set: new"} <= fields, said
    adds = [field for field in fields if field.startswith("x-add")]
    assert sorted(adds) == ["x-add: 1", "x-add: 2"], said
    assert not any(field.startswith("x-gone") or field == "x-set: old" for field in fields), said


ANSWERED = [
    ("/p/7?a=b", 308, "redirected", "moved"),
    ("/closed", 503, "responded", "closed"),
    ("/faulty", 500, "fault", "faulty"),
    ("/too-late", 504, "timeout", "too-late"),
    ("/nowhere", 503, "no-route", "nowhere"),
    ("/forbidden", 403, "denied", "forbidden"),
    ("/products/../p/7", 400, "bad-path", "prefix"),
]


def test_what_is_answered_on_the_callers_host(leaves: Leaves) -> None:
    """Also the route to inventory: the caller's own [outbound] names it not."""
    before, cursor = reached(leaves.world, *LEAVES), leaves.world.h1.journal_cursor()
    answers = [leaves.ask("GET", path) for path, _, _, _ in ANSWERED]
    for answer, (path, status, flag, route) in zip(answers, ANSWERED, strict=True):
        assert (answer.status, answer.headers["x-hostmesh-error"]) == (status, flag), path
        lines = leaves.told(cursor, HOSTMESH_FLAG=flag)
        assert {line["HOSTMESH_ROUTE"] for line in lines} == {route}
    moved, closed, *_ = answers
    assert moved.headers["location"] == "https://shop.example.org/products/7?a=b"
    assert (closed.body, closed.headers["retry-after"]) == ("closed for today", "60")
    assert reached(leaves.world, *LEAVES) == before


def reached(world: World, *names: str) -> dict[str, float]:
    """How many requests of shop each of these services has had, by what h2's proxy counts."""
    of = {"direction": "inbound", "source": f"spiffe://{TRUST_DOMAIN}/unit/shop"}
    return {name: total(world.h2, "hostmesh_requests_total", **of, destination=f"{name}.service") for name in names}


def wait_reached(world: World, before: Mapping[str, float], more: Mapping[str, int]) -> None:
    """Wait until each of these services has had so many requests more than before, the others none."""
    wanted = {name: count + more.get(name, 0) for name, count in before.items()}
    wait_until(lambda: reached(world, *before) == wanted, f"h2 has counted {wanted}", 10.0, 0.1)


def test_ten_of_a_hundred_and_the_same_value_the_same_choice(leaves: Leaves) -> None:
    before = reached(leaves.world, *LEAVES)
    leaves.ask_often("/split", 1000)

    def all_of_them() -> dict[str, float] | None:
        now = reached(leaves.world, *LEAVES)
        more = {name: now[name] - before[name] for name in now}
        return more if sum(more.values()) >= 1000 else None

    more = wait_until(all_of_them, "h2 has counted all", 10.0, 0.1)
    assert sum(more.values()) == 1000 and more["leaf-v3"] == 0, more
    assert 43 <= more["leaf-v2"] <= 157, more  # 100, six sigma
    chosen = []
    for user in range(12):
        cookie = {"cookie": f"a=1; session=user-{user}"}
        [page] = {leaves.ask("GET", "/sticky", cookie).body for _ in range(4)}
        chosen.append(page)
    assert set(chosen) == {"leaf /sticky\n", "leaf-v2 /sticky\n"}


@pytest.mark.parametrize("version", ["--http2-prior-knowledge", "--http1.1"])
@pytest.mark.parametrize(("route", "mirror"), [("copied", "leaf-v3"), ("copied-on", "leaf-v2")], ids=["http1", "http2"])
def test_every_copy_arrives(leaves: Leaves, route: str, mirror: str, version: str) -> None:
    """At a mirror that speaks HTTP/1.1, and at one that speaks HTTP/2; whatever the client does."""
    h1, h2, before = leaves.world.h1, leaves.world.h2, reached(leaves.world, *LEAVES)
    copies, cursors = total(h1, "hostmesh_proxy_mirrored_total"), (h1.journal_cursor(), h2.journal_cursor())
    chunked = () if version != "--http1.1" else ("-H", "transfer-encoding: chunked")
    for sent in [(), ("-d", "x" * 2000), ("-d", "x" * 60_000), (*chunked, "-d", "x" * 3000), ("-X", "POST")] * 2:
        assert leaves.curl(version, *sent, f"http://leaf/{route}").stdout == f"leaf /{route}\n"
    wait_metric(h1, "hostmesh_proxy_mirrored_total", copies + 10)
    wait_reached(leaves.world, before, {"leaf": 10, mirror: 10})
    lines = leaves.told(cursors[0], HOSTMESH_FLAG="mirrored")
    assert {(line["HOSTMESH_SERVICE"], line["HOSTMESH_STATUS"]) for line in lines} == {(mirror, "200")}
    if mirror == "leaf-v2":

        def all_told() -> bool:
            said = " ".join(entry["MESSAGE"] for entry in h2.journal(unit="leaf-v2.service", after=cursors[1]))
            peers = said.count(f"x-hostmesh-peer: spiffe://{TRUST_DOMAIN}/unit/shop")
            lengths = [int(length) for length in re.findall(r"recv DATA frame <length=(\d+)", said)]
            return (peers, sum(lengths)) == (10, 2 * (2000 + 60_000 + 3000))

        wait_until(all_told, "nghttpd has told all bodies, and who called", 10.0, 0.1)


CALLS = """
[[traffic.route]]
name    = "led"
match   = { path = "/lab.Echo/Old", methods = ["POST"], headers = { x-canary = "1" } }
to      = "herald-v2"
rewrite = { path = "/lab.Echo/Told" }
request_headers  = { set = { x-set = "new" }, add = { x-add = "2" }, remove = ["x-gone"] }
response_headers = { set = { x-route = "led" } }

[[traffic.route]]
match = { path = "/lab.Echo/Both" }
to    = "herald-v2"
response_headers = { set = { x-route = "both" } }

[[traffic.route]]
match = { path = "/lab.Echo/Told" }
to    = { herald = 50, herald-v2 = 50 }

[[traffic.route]]
match  = { path = "/lab.Echo/Unary" }
mirror = { to = "herald-v2" }

[[traffic.route]]
match   = { path = "/lab.Echo/Closed" }
respond = { status = 503, body = "closed for today" }

[[traffic.route]]
match    = { path = "/lab.Echo/Moved" }
redirect = { to = "https://shop.example.org/", status = 308 }

[[traffic.route]]
match = { path = "/lab.Echo/Nowhere" }
to    = "no-such-herald"

[[traffic.route]]
match = { path = "/lab.Echo/Forbidden" }
to    = "inventory"

[[traffic.route]]
match = { path = "/lab.Echo/Faulty" }
fault = { abort = 401 }
"""


def test_calls_of_grpc(mesh: World) -> None:
    """What a route answers in HTTP's words is a status to grpcio (grpc/doc/http-grpc-status-mapping.md)."""
    ports = {"herald": 8054, "herald-v2": 8055}
    extras = {name: Extra(name, port, "grpc", "grpc_server.py", python=OURS) for name, port in ports.items()}
    extras["herald"] = replace(extras["herald"], policy=CALLS)
    with called_by_shop(mesh, extras, dict.fromkeys(extras, "grpc_server.py")):
        before, cursor = reached(mesh, *extras), mesh.h1.journal_cursor()
        said = json.loads(
            Served(mesh, extras["herald"]).client("grpc_client.py", "herald:8054", "routed").must().stdout
        )
        split = said["split"]
        wait_reached(mesh, before, {"herald": split["herald"] + 3, "herald-v2": split["herald-v2"] + 2 + 3})
        copies = mesh.denials(mesh.h1, after=cursor, HOSTMESH_UNIT="shop.service", HOSTMESH_FLAG="mirrored")
    assert said["copied"] == [True] * 3
    assert {(line["HOSTMESH_SERVICE"], line["HOSTMESH_GRPC_STATUS"]) for line in copies} == {("herald-v2", "0")}
    metadata = said["led"].pop("metadata")
    assert said["led"] == {"by": "herald-v2", "message": "led"}
    assert metadata["x-set"] == "new" and metadata["x-canary"] == "1" and "x-gone" not in metadata
    assert metadata["x-add"].endswith("2") and metadata["x-hostmesh-peer"] == f"spiffe://{TRUST_DOMAIN}/unit/shop"
    assert said["headers"]["x-route"] == "led"
    assert said["both"] == [True, "OK", "both"]
    assert split.keys() == extras.keys() and sum(split.values()) == 400
    assert 140 <= split["herald-v2"] <= 260  # 200, six sigma
    assert said["answered"] == {
        "Closed": "UNAVAILABLE",
        "Moved": "UNKNOWN",
        "Nowhere": "UNAVAILABLE",
        "Forbidden": "PERMISSION_DENIED",
        "Faulty": "UNAUTHENTICATED",
    }
