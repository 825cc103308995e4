"""The command as a person types it: exit codes, tables, JSON, and how soon it answers."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostmesh.agent.control import ControlSocket
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.snapshot import snapshot
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load
from hostmesh.wire import agent_control as wire
from hostmesh.wire.proxy_control import RetiredProxy
from hostmesh.wire.snapshot import (
    Endpoint,
    HeaderEdits,
    Hedge,
    Inject,
    Mirror,
    Redirect,
    Retries,
    Rewrite,
    Route,
    RouteMatch,
    Service,
    ServicePort,
    Share,
    Traffic,
)

INVENTORY = """\
[service.ports]
8080 = "http"
[[inbound.allow]]
from = ["orders"]
methods = ["GET"]
paths = ["/products/*"]
"""
SHELF = Traffic(
    5000, Retries(2, 0, ["5xx"], 0.2, non_idempotent=False), "least-request", "shelf.service.toml:5",
    routes=[
        Route(
            "canary", "shelf.service.toml:9", RouteMatch("/products/{id}", headers=[("x-canary", "1")]),
            to=[Share("inventory", 30), Share("shelf", 90)], sticky="cookie:session",
            rewrite=Rewrite("/v2/{id}"), mirror=Mirror("db", 5, 64), timeout_ms=2000,
            request_headers=HeaderEdits(set=[("x-a", "1")], remove=["x-b"]), hedge=Hedge(100, 2),
        ),
        Route("moved", "shelf.service.toml:20", RouteMatch("/old/*"), redirect=Redirect("https://x.example/*", 308)),
        Route("gone", "shelf.service.toml:25", RouteMatch("/gone"), to=[Share("nowhere", 1)],
              fault=Inject(0, 0, 503, 5)),
    ],
)  # fmt: skip
ORDERS = '[outbound]\nallow = ["inventory", "api.example.org:443"]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host's files: settings, and two policies."""
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "inventory.service.toml").write_text(INVENTORY)
    (policies / "orders.service.toml").write_text(ORDERS)
    (tmp_path / "hostmesh.toml").write_text(
        f'host = "h1"\n[paths]\npolicies = "{policies}"\nagent_socket = "{tmp_path}/agent.sock"\n'
    )
    return tmp_path


def hostmesh(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hostmesh.cli.main", *words],
        env={"HOSTMESH_SETTINGS": str(folder / "hostmesh.toml"), "TZ": "UTC"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


class Questions:
    """Canned answers behind the agent's real socket."""

    def __init__(self, folder: Path) -> None:
        policies = load({p.name: p.read_text() for p in (folder / "policies").glob("*.toml")})
        numbers = {policy.unit: index for index, policy in enumerate(policies, 1)}
        remote = Endpoint(
            "db.service", "h2", "spiffe://mesh.local/unit/db", "db.unit.mesh.local", ["198.18.0.2"], 15008
        )
        services = [
            Service("inventory", ["240.240.0.1"], [ServicePort(80, 8080, "http"), ServicePort(8080, 8080, "http")],
                    Traffic(0, None, "least-request", ""), []),
            Service("db", ["240.240.0.2"], [ServicePort(5432, 5432, "tcp")],
                    Traffic(0, None, "least-request", ""), [remote]),
            Service("shelf", ["240.240.0.3"], [ServicePort(80, 8090, "http")], SHELF, [remote]),
        ]  # fmt: skip
        self.snapshot = snapshot(Settings(host="h1"), policies, HostFacts("h1", (), {}, numbers), services, [])

    async def status(self, number: int) -> wire.Answer:
        seen = wire.Suggestion("shop", "spiffe://mesh.local/unit/shop", "198.18.0.1", 8080, ["GET"], 3)
        unit = wire.UnitStatus(
            "inventory.service", "inventory.service.toml", "active", "audit", "cgroup", "inventory", 1,
            [wire.UnitPort(8080, "http", True)], False, True, "", None, [seen],
            "its Slice= is x.slice",
        )  # fmt: skip
        return wire.Status(
            number, "0.1.0", "h1", "mesh.local", 1, "abc", 2, [], ["no room"], [],
            wire.ControllerLink(True, True, ["198.18.0.2:15010"], 3, 4, ""),
            wire.ProxyLink(True, "0.1.0", "abc", 7, "", [RetiredProxy(77, 1, "0.0.9", 5, 9 << 20)]), [unit],
        )  # fmt: skip

    def plan(self, number: int) -> wire.Answer:
        return wire.PlanInForce(number, self.snapshot, "")

    async def diff(self, number: int, policies: dict[str, str]) -> wire.Answer:
        return wire.Diff(number, [], [(f"write {name}", text) for name, text in policies.items()])

    async def reconcile(self, number: int) -> wire.Answer:
        return wire.Refused(number, "no")


@pytest.fixture
def agent(folder: Path) -> Iterator[Path]:
    """The agent's own socket server in a thread."""
    loop = asyncio.new_event_loop()
    server = ControlSocket(str(folder / "agent.sock"), Questions(folder))
    task = loop.create_task(server.run())

    def serve() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=serve)
    thread.start()
    deadline = time.monotonic() + 10
    while not (folder / "agent.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield folder
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)
    loop.close()


def test_check_says_that_all_is_well(folder: Path) -> None:
    done = hostmesh(folder, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 policies, no errors" in done.stdout
    told = json.loads(hostmesh(folder, "check", "--json", str(folder / "policies/inventory.service.toml")).stdout)
    assert [policy["ports"] for policy in told["policies"]] == [{"8080": "http"}]


def test_check_tells_all_errors_of_all_files(folder: Path) -> None:
    for name in ("inventory", "orders"):
        path = folder / f"policies/{name}.service.toml"
        path.write_text(path.read_text() + "[inbuond]\n[obsrve]\n")
    done = hostmesh(folder, "check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("[unknown-key]") == 4
    assert f"{folder}/policies/inventory.service.toml:7:1: unknown key 'inbuond'" in done.stderr
    told = json.loads(hostmesh(folder, "check", "--json").stdout)
    assert (told["ok"], len(told["findings"]), told["findings"][0]["line"]) == (False, 4, 7)


def test_check_of_what_is_not_there(folder: Path) -> None:
    done = hostmesh(folder, "check", str(folder / "no.service.toml"))
    assert done.returncode == 1
    assert "no.service.toml: cannot be read: No such file or directory [unreadable]" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("orders", "inventory", "GET", "/products/7"), 0, "allowed, by inventory.service.toml:3"),
        (("orders", "inventory:80", "GET", "/products/7?x=1"), 0, "allowed, by inventory.service.toml:3"),
        (("orders.service", "240.240.0.1", "GET", "/products/7"), 0, "allowed, by orders.service.toml:2"),
        (("orders", "inventory", "POST", "/products/7"), 1, "REFUSED, by inventory.service.toml:no-allow"),
        (("orders", "inventory", "GET", "/x/../products/7"), 1, "REFUSED with 400, by inventory.service.toml:3"),
        (("orders", "inventory:8080"), 1, "depends on the request: give METHOD and PATH, by inventory.service.toml:3"),
        (("shop", "inventory", "GET", "/products/7"), 1, "not a unit of this host"),
        (("local", "inventory", "GET", "/products/7"), 1, "REFUSED, by inventory.service.toml:no-plaintext"),
        (
            ("198.18.0.9", "inventory", "GET", "/"),
            1,
            "may 198.18.0.9 without identity come to inventory.service, port 8080?",
        ),
        (("inventory", "db"), 0, "served by db.service on h2: ask there"),
        (("orders", "db"), 1, "REFUSED, by orders.service.toml:no-outbound"),
        (("orders", "api.example.org:443"), 0, "allowed, by orders.service.toml:2"),
        (("orders", "198.51.100.7:443"), 1, "REFUSED, by orders.service.toml:no-outbound"),
        (("inventory", "[2001:2::1]:443"), 0, "allowed, by builtin:no-outbound-policy"),
    ],
)
def test_explain(agent: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = hostmesh(agent, "explain", *words)
    assert says in done.stdout, done
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.endswith("judged by the plan in force\n")


def test_explain_shows_every_rule_tried(agent: Path) -> None:
    told: dict[str, Any] = json.loads(hostmesh(agent, "explain", "--json", "orders", "inventory", "PUT", "/a").stdout)
    judged = [answer for answer in told["answers"] if answer["verdict"]]
    assert [answer["verdict"] for answer in judged] == ["allow", "deny"]
    assert judged[1]["trace"] == [
        {"rule": "inventory.service.toml:3", "kind": "allow", "fits": False, "why": "not for method PUT"}
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("GET", "/products/7?x=1", "--header", "x-canary: 1"), ["route canary, by shelf.service.toml:9",
            "to inventory (25 %) or shelf (75 %), by chance", "asked for as /v2/7",
            "headers of the request: x-a is set, x-b is removed", "a copy of 5 % goes to db, 64 at once",
            "in 2 s at most, all tries together (shelf.service.toml:9)",
            "2 tries, after 5xx, at most 20% more requests (shelf.service.toml:5)",
            "another endpoint is asked, too, after 0.1 s, where the method may repeat, 2 in all (shelf.service.toml:9)",
            "may spiffe://mesh.local/unit/inventory come to inventory.service, port 8080?",
            "may spiffe://mesh.local/unit/inventory come to shelf?"]),
        (("GET", "/products/7", "--header", "x-canary:1", "--header", "cookie:session=u2"), [", by cookie:session"]),
        (("GET", "/products/7"), ["no route fits: the service itself", "in 5 s at most, all tries together (shelf.s"]),
        (("GET", "/old/a?b=1"), ["answered with 308 to https://x.example/a?b=1"]),
        (("GET", "/gone"), ["5 % are answered with 503, on purpose", "where is nowhere?", "503, no-route"]),
        (("GET", "/old/../a"), ["route moved, by shelf.service.toml:20: REFUSED with 400"]),
        ((), ["depends on the request: give METHOD and PATH"]),
    ],
)  # fmt: skip
def test_explain_says_the_route_and_what_it_does(agent: Path, words: tuple[str, ...], says: list[str]) -> None:
    done = hostmesh(agent, "explain", "inventory", "shelf", *words)
    assert done.stderr == ""
    assert [text for text in says if text not in done.stdout] == [], done.stdout
    told = json.loads(hostmesh(agent, "explain", "--json", "inventory", "shelf", *words).stdout)
    [routing] = [answer for answer in told["answers"] if "targets" in answer]
    assert routing["lines"]


def test_explain_without_an_agent_goes_by_the_files_and_says_so(folder: Path) -> None:
    done = hostmesh(folder, "explain", "orders", "inventory", "GET", "/products/7")
    assert done.returncode == 0
    assert f"allowed, by {folder}/policies/inventory.service.toml:3" in done.stdout
    assert "no agent answers" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("orders", "nobody"), "which port of nobody?"),
        (("shop", "nobody:80"), "knows neither shop nor nobody"),
        (("orders", "inventory", "GET"), "a method needs a path"),
        (("or ders", "inventory"), "is not a unit name"),
        (("spiffe://X", "inventory"), "is not a SPIFFE ID"),
    ],
)
def test_explain_what_cannot_be(agent: Path, words: tuple[str, ...], says: str) -> None:
    done = hostmesh(agent, "explain", *words)
    assert done.returncode == 1
    assert says in done.stderr


def test_status_says_loudly_what_is_not_enforced_or_applied(agent: Path) -> None:
    done = hostmesh(agent, "status")
    assert done.returncode == 0
    for words in (
        "AUDIT: nothing is enforced yet",
        "NOT APPLIED: no room",
        "NOT MESHED",
        "NOT IN FORCE",
        "shop",
        "7 connections",
        "5 more in process 77 from before a reload",
    ):
        assert words in done.stdout
    assert json.loads(hostmesh(agent, "status", "--json").stdout)["units"][0]["suggestions"][0]["caller"] == "shop"


def test_status_suggests_rules_that_pass(agent: Path) -> None:
    rules = hostmesh(agent, "status", "--suggest", "inventory").stdout
    (policy,) = load({"inventory.service.toml": f"{INVENTORY}\n{rules}"})
    assert policy.allow[1].callers == ("shop",)


def test_status_without_an_agent(folder: Path) -> None:
    done = hostmesh(folder, "status")
    assert done.returncode == 1
    assert "this host is in no mesh: hostmesh enable UNIT" in done.stderr
    settings = folder / "hostmesh.toml"
    settings.write_text(f'controllers = ["198.18.0.1:15010"]\n{settings.read_text()}')
    assert "systemctl status hostmeshd.service" in hostmesh(folder, "status").stderr


def test_enforce_without_an_agent_takes_a_decision(folder: Path) -> None:
    path = folder / "policies/inventory.service.toml"
    path.write_text("[inbound]\nmode = 'audit'\n")
    done = hostmesh(folder, "enforce", "inventory")
    assert done.returncode == 1
    assert "no agent answers" in done.stderr
    assert "'audit'" in path.read_text()
    assert hostmesh(folder, "enforce", "inventory", "--refuse-seen").returncode == 0
    assert "'enforce'" in path.read_text()


def test_settings_that_are_broken_keep_no_unit_in(folder: Path) -> None:
    (folder / "hostmesh.toml").write_text("{{garbage")
    script = "from hostmesh.cli import removal; print(removal.settings().paths.policies)"
    environment = {"HOSTMESH_SETTINGS": str(folder / "hostmesh.toml")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "/etc/hostmesh/policies\n"
    assert "the usual settings are taken" in done.stderr


def test_certs_tells_by_its_exit_code_that_one_is_missing(agent: Path) -> None:
    done = hostmesh(agent, "certs")
    assert done.returncode == 1
    assert "inventory.service  none yet" in done.stdout
    assert "spiffe://mesh.local/host/h1" in done.stdout


def test_diff_lays_files_over_those_in_force(agent: Path) -> None:
    (agent / "new.service.toml").write_text("[observe]\n")
    done = hostmesh(agent, "diff", str(agent / "new.service.toml"), "--without", "orders.service")
    assert done.returncode == 0
    assert "write new.service.toml\n    [observe]\nwrite orders.service.toml\n2 steps" in done.stdout


def test_what_is_not_understood(folder: Path) -> None:
    assert hostmesh(folder, "explode").returncode == 2
    assert hostmesh(folder).returncode == 2
    assert hostmesh(folder, "--version").stdout.strip()


def cpu_seconds(*arguments: str) -> float:
    """What Python takes for this; the fastest of five, so that a busy machine does not count."""
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, *sys.argv[1:]], stdout=-3, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    command = [sys.executable, "-c", script, *arguments]
    return min(float(subprocess.check_output(command, text=True, timeout=30)) for _ in range(5))


def test_it_answers_at_once(folder: Path) -> None:
    """The promise is 150 ms, of a machine on which Python by itself starts in 12."""
    took = cpu_seconds("-m", "hostmesh.cli.main", "check", str(folder / "policies"))
    assert took < max(0.150, 12.5 * cpu_seconds("-c", "pass")), took
