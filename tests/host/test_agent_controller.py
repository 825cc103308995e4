"""Two agents and a controller on real hosts: what runs on one is known on the other, and stays known without it."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hostmesh.policy.hostfile import PLACE
from hostmesh.wire import agent_control as wire
from hostmesh.wire.proxy_control import SvidStatus
from hostmesh.wire.snapshot import Service
from tests.host.agent_socket import ask, status, unit_status, wait_active
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.lab

UNIT = """[Service]
Type=exec
ExecStart=/usr/bin/python3 -u -m http.server {port} --bind ::
DynamicUser=yes
"""


def serve(host: Host, name: str, port: int) -> None:
    """A unit with a policy, running."""
    host.write(f"/etc/systemd/system/{name}.service", UNIT.format(port=port))
    host.write(f"/etc/hostmesh/policies/{name}.service.toml", f'[service]\n[service.ports]\n{port} = "http"\n')
    host.systemctl("daemon-reload")
    host.systemctl("start", f"{name}.service")


@pytest.fixture(scope="module")
def hosts(hostmesh_wheels: Path) -> Iterator[Lab]:
    """h1 serves web and may; it serves rogue too and may not. h2 has the controller, and serves db."""
    with Lab(("h1", "h2"), layers=[hostmesh_wheels]) as lab:
        h1, h2 = lab["h1"], lab["h2"]
        for host in (h1, h2):
            host.systemctl("start", "hostmeshd.service")
        serve(h1, "web", 8080)
        serve(h1, "rogue", 8081)
        serve(h2, "db", 5432)
        words = ["controller", "init", "--trust-domain", "mesh.test", "--address", h2.ipv4]
        h2.exec(["hostmesh", *words, "--vip-range", "198.19.0.0/16"]).must()
        h2.systemctl("start", "hostmesh-controller.service")
        for host, unit in ((h1, "web"), (h2, "db")):
            token = h2.exec(["hostmesh", "controller", "token", host.name, "--unit", unit]).must().stdout.strip()
            host.exec(["hostmesh", "join", token]).must()
        yield lab


@pytest.fixture(scope="module")
def h1(hosts: Lab) -> Host:
    return hosts["h1"]


@pytest.fixture(scope="module")
def h2(hosts: Lab) -> Host:
    return hosts["h2"]


def service(host: Host, name: str) -> Service | None:
    """As the host's plan in force has it."""
    wait_active(host)
    plan = ask(host, wire.GetPlan(1), wire.PlanInForce)
    return next((found for found in plan.snapshot.services if found.name == name), None)


def endpoints(host: Host, name: str) -> list[str]:
    """The hosts that serve it."""
    found = service(host, name)
    return [endpoint.host for endpoint in found.endpoints] if found else []


def test_joining_is_taken_up_by_the_running_agent(h1: Host, h2: Host) -> None:
    for host in (h1, h2):
        wait_until(lambda host=host: status(host).controller.connected, f"{host.name}: connected", 15.0, 0.05)
        said = status(host)
        assert (said.host, said.trust_domain, said.controller.joined) == (host.name, "mesh.test", True)
        assert said.controller.host_svid_not_after > time.time()


def test_what_runs_on_one_host_is_known_on_the_other_by_a_vip(h1: Host, h2: Host) -> None:
    wait_until(lambda: endpoints(h2, "web") == ["h1"], "h2 knows web of h1", 10.0)
    wait_until(lambda: endpoints(h1, "db") == ["h2"], "h1 knows db of h2", 10.0)
    there, here = service(h2, "web"), service(h1, "web")
    assert there
    assert here
    assert there.vips == here.vips
    assert there.vips[0].startswith("198.19.")
    assert there.endpoints[0].addresses == [h1.ipv4, h1.ipv6]
    assert there.endpoints[0].spiffe_id == "spiffe://mesh.test/unit/web"


def test_a_unit_that_was_not_granted_is_refused_with_the_reason(h1: Host, h2: Host) -> None:
    said = wait_until(lambda: (s := unit_status(h1, "rogue.service")) and s.refused and s, "the refusal is told", 10.0)
    assert "may not run rogue.service" in said.refused
    assert not said.published
    assert unit_status(h1, "web.service").published
    assert endpoints(h2, "rogue") == endpoints(h1, "rogue") == []


def test_every_unit_that_may_run_here_gets_its_identity(h1: Host, h2: Host) -> None:
    for host, unit in ((h1, "web"), (h2, "db")):
        svid = wait_until(lambda host=host, unit=unit: svid_of(host, unit), f"{unit} has an SVID", 15.0, 0.05)
        assert svid.spiffe_id == f"spiffe://mesh.test/unit/{unit}"
        assert 23 * 3600 < svid.not_after - time.time() < 25 * 3600
    assert svid_of(h1, "rogue") is None
    assert status(h1).proxy.revision == status(h1).revision


def test_what_is_heard_while_the_agent_starts_stays(h2: Host) -> None:
    """Its start waits for a name that nobody knows; meanwhile the controller speaks, which can't be written down."""
    dropin, resolver = "/run/systemd/system/hostmeshd.service.d/90-read-only.conf", "/etc/resolv.conf"
    files = {path: h2.read(path) for path in (PLACE, resolver)}
    h2.systemctl("stop", "hostmeshd.service")
    h2.exec(["rm", "/var/lib/hostmesh/catalog.json"]).must()
    h2.write(dropin, "[Service]\nReadOnlyPaths=/var/lib/hostmesh\n")
    h2.write(PLACE, files[PLACE] + '\n[traces]\nendpoint = "http://collector.example:4317"\n')
    h2.write(resolver, "nameserver 198.18.0.250\n")
    try:
        h2.systemctl("daemon-reload")
        h2.systemctl("start", "hostmeshd.service")
        wait_until(lambda: status(h2).controller.connected, "the controller is there", 10.0)
        wait_until(lambda: endpoints(h2, "web") == ["h1"], "h2 knows web of h1", 10.0)
    finally:
        for path, text in files.items():
            h2.write(path, text)
        h2.exec(["rm", dropin]).must()
        h2.systemctl("daemon-reload")
        h2.systemctl("restart", "hostmeshd.service")


def test_identities_outlive_the_proxy(h1: Host) -> None:
    before = wait_until(lambda: svid_of(h1, "web"), "web has an SVID", 15.0, 0.05)
    pid = h1.main_pid("hostmesh-proxy.service")
    h1.exec(["systemctl", "kill", "--signal=KILL", "hostmesh-proxy.service"]).must()
    h1.wait_another_process("hostmesh-proxy.service", pid)
    wait_until(lambda: status(h1).proxy.connected, "and connected again", 5.0)
    assert svid_of(h1, "web") == before
    h1.exec(["systemctl", "kill", "--signal=KILL", "hostmeshd.service"]).must()
    wait_until(lambda: svid_of(h1, "web") == before, "the agent asks for no new one", 15.0, 0.05)


def test_what_is_past_half_its_life_is_renewed(h1: Host, h2: Host) -> None:
    """With a life so short that its half is over at once; the first of them comes by a grant to a running host."""
    before = svid_of(h1, "web")
    config = h2.read("/etc/hostmesh/controller.toml")
    kept = [line for line in config.splitlines() if not line.startswith("unit_hours")]
    h2.write("/etc/hostmesh/controller.toml", "\n".join(["unit_hours = 0.02", *kept]) + "\n")
    h2.systemctl("restart", "hostmesh-controller.service")
    h2.exec(["hostmesh", "controller", "grant", "h1", "rogue"]).must()
    wait_until(lambda: status(h1).controller.connected, "connected again", 20.0, 0.05)

    def renewed(than: str) -> str | None:
        ask(h1, wire.Reconcile(1), wire.Done)
        svid = svid_of(h1, "rogue")
        return svid.serial if svid and svid.serial != than else None

    first = wait_until(lambda: renewed(""), "the granted unit has an SVID", 20.0, 0.05)
    wait_until(lambda: renewed(first), "another one", 20.0, 0.05)
    assert svid_of(h1, "web") == before, "what is fresh is left alone"
    h2.write("/etc/hostmesh/controller.toml", config)
    h2.systemctl("restart", "hostmesh-controller.service")
    wait_until(lambda: status(h1).controller.connected, "connected again", 20.0, 0.05)


def test_stop_and_crash_take_the_endpoint_out_everywhere(h1: Host, h2: Host) -> None:
    wait_until(lambda: endpoints(h2, "web") == ["h1"], "web is served", 10.0)
    served = service(h2, "web")
    assert served
    nobody = msgspec.structs.replace(served, endpoints=[])
    for gone in (["stop"], ["kill", "--signal=KILL"]):
        began = time.monotonic()
        h1.exec(["systemctl", *gone, "web.service"]).must()
        wait_until(lambda: endpoints(h2, "web") == [], f"{gone[0]}: the endpoint is out", 5.0)
        assert time.monotonic() - began < 2.0
        assert service(h2, "web") == service(h1, "web") == nobody, "its name, VIP and [traffic] stay"
        assert not unit_status(h1, "web.service").published
        h1.exec(["systemctl", "reset-failed", "web.service"])
        h1.systemctl("start", "web.service")
        wait_until(lambda: endpoints(h2, "web") == ["h1"], "and in again", 5.0)


def test_without_a_controller_a_restarted_agent_goes_on(h1: Host, h2: Host) -> None:
    wait_until(lambda: endpoints(h1, "db") == ["h2"], "h1 knows db", 10.0)
    h2.exec(["systemctl", "kill", "--signal=KILL", "hostmesh-controller.service"]).must()
    h2.systemctl("stop", "hostmesh-controller.service")
    before = service(h1, "db")
    h1.exec(["systemctl", "kill", "--signal=KILL", "hostmeshd.service"]).must()
    wait_until(lambda: "activating" not in active(h1), "it is started again", 10.0)
    wait_active(h1)
    assert service(h1, "db") == before
    assert not status(h1).controller.connected
    assert status(h1).controller.error
    h1.systemctl("stop", "web.service")
    wait_until(lambda: endpoints(h1, "web") == [], "this host knows of its own units by itself", 5.0)
    h2.systemctl("start", "hostmesh-controller.service")
    wait_until(lambda: status(h1).controller.connected, "connected again", 20.0, 0.05)
    wait_until(lambda: endpoints(h2, "web") == [], "and what happened meanwhile is told", 10.0)
    h1.systemctl("start", "web.service")
    wait_until(lambda: endpoints(h2, "web") == ["h1"], "changes flow", 10.0)


def svid_of(host: Host, unit: str) -> SvidStatus | None:
    found = unit_status(host, f"{unit}.service")
    return found.svid if found else None


def active(host: Host) -> str:
    return host.exec(["systemctl", "is-active", "hostmeshd.service"]).stdout
