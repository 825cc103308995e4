"""Turns a lab into the world of the demo: hostmesh installed as a user would, stock services meshed.

h1: orders, and the callers (`shop` is named by the policies, `guest` is not). h2: inventory, nginx, redis, PostgreSQL
and the controller. outsider: a host without hostmesh, with two addresses; the first is named as a plain-text scraper.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.host import Host, Result
from tests.lab.install import install
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until
from tests.mesh import in_force

DEMO = Path(__file__).parents[2] / "demo"
POLICIES = "/etc/hostmesh/policies"
TRUST_DOMAIN = "mesh.test"
CONTROLLER = "h2"
UNITS = {
    "h1": ("orders.service",),
    "h2": ("inventory.service", "nginx.service", "redis-server.service", "postgresql@15-main.service"),
}
CALLERS = ("shop.service", "guest.service")
SCRAPER, STRANGER = "198.18.0.3", "198.18.0.33"

Tell = Callable[[str], None]


@dataclass
class World:
    """The hosts, and what one does with them."""

    lab: Lab

    @property
    def h1(self) -> Host:
        """Callers' host."""
        return self.lab["h1"]

    @property
    def h2(self) -> Host:
        """Services' host, and the controller's."""
        return self.lab["h2"]

    @property
    def outsider(self) -> Host:
        """A host that is not of the mesh."""
        return self.lab["outsider"]

    def shop(self, *argv: str, timeout: float = 30.0) -> Result:
        """Run a command on h1 as the meshed unit that the policies name."""
        return self.as_unit("shop", argv, timeout=timeout)

    def guest(self, *argv: str, timeout: float = 30.0) -> Result:
        """Run a command on h1 as the meshed unit that no policy names."""
        return self.as_unit("guest", argv, timeout=timeout)

    def as_unit(self, unit: str, argv: Sequence[str], *, host: Host | None = None, timeout: float = 30.0) -> Result:
        """Run a command on a host (h1) as a meshed unit, by the product's own verb."""
        return (host or self.h1).exec(["hostmesh", "run", "--unit", unit, "--", *argv], timeout=timeout)

    def status(self, host: Host) -> dict[str, Any]:
        """What the host's agent says of itself."""
        said: dict[str, Any] = json.loads(host.exec(["hostmesh", "status", "--json"]).must().stdout)
        return said

    def services(self, host: Host) -> dict[str, dict[str, Any]]:
        """The services that the host's proxy knows, by name, from the snapshot that it took."""
        return {service["name"]: service for service in in_force.snapshot(host)["services"]}

    def serials(self, host: Host) -> dict[str, str]:
        """Serial number of each unit's SVID that is in force."""
        return {unit["unit"]: unit["svid"]["serial"] for unit in self.status(host)["units"] if unit["svid"]}

    def write_policy(self, host: Host, unit: str, text: str) -> None:
        """Save a policy, as Ansible does: a new file moved into place."""
        host.write(f"{POLICIES}/.{unit}.toml.new", text)
        host.exec(["mv", f"{POLICIES}/.{unit}.toml.new", f"{POLICIES}/{unit}.toml"]).must()

    def policy(self, unit: str) -> str:
        """The demo's policy of a unit."""
        return (DEMO / "policies" / f"{unit}.toml").read_text()

    @contextlib.contextmanager
    def changed_policy(self, host: Host, unit: str, text: str) -> Iterator[None]:
        """Another policy for the length of a ``with``; the demo's own comes back after it."""
        before = host.read(f"{POLICIES}/{unit}.toml")
        self.write_policy(host, unit, text)
        try:
            yield
        finally:
            self.write_policy(host, unit, before)

    def denials(self, host: Host, *, after: str, **fields: str) -> list[dict[str, str]]:
        """Denials that a host's journal got since ``after``, waited for: the writer batches them."""

        def found() -> list[dict[str, str]] | None:
            return host.journal(after=after, **fields) or None

        return wait_until(found, f"{host.name}: a journal line with {fields}", 5.0, 0.05)


@contextlib.contextmanager
def world(tell: Tell = lambda _: None, *, open_house: bool = False) -> Iterator[World]:
    """The whole world, up and meshed; all gone after the ``with``. ``open_house``: for the lab's hand tool too."""
    tell("booting three hosts")
    with Lab(("h1", "h2", "outsider"), open_house=open_house) as lab:
        the_world = World(lab)
        lab["outsider"].exec(["ip", "address", "add", f"{STRANGER}/24", "dev", "eth0"]).must()
        tell("h1, h2: installing hostmesh from the wheels")
        with ThreadPoolExecutor() as threads:
            list(threads.map(install, (lab["h1"], lab["h2"])))
        _services(the_world)
        enrol(lab, {"h1": (*UNITS["h1"], *CALLERS), "h2": UNITS["h2"]}, tell)
        for name, units in UNITS.items():
            _mesh(the_world, lab[name], units, tell)
        for unit in CALLERS:
            the_world.write_policy(lab["h1"], unit, the_world.policy(unit))
        _settled(the_world, tell)
        yield the_world


def _services(the_world: World) -> None:
    for unit, host in (("inventory", the_world.h2), ("orders", the_world.h1)):
        host.write(f"/opt/demo/{unit}.py", (DEMO / "services" / f"{unit}.py").read_text(), mode=0o755)
        host.write(f"/etc/systemd/system/{unit}.service", (DEMO / "services" / f"{unit}.service").read_text())
        host.systemctl("daemon-reload")
        host.systemctl("enable", "--now", f"{unit}.service")
    for unit in ("nginx.service", "redis-server.service", "postgresql@15-main.service"):
        the_world.h2.systemctl("enable", "--now", unit)
    make = "create role shop login password 'shop'", "create database shop owner shop"
    for statement in make:
        the_world.h2.exec(["runuser", "-u", "postgres", "--", "psql", "-qc", statement]).must()


def enrol(lab: Lab, grants: Mapping[str, Sequence[str]], tell: Tell) -> None:
    """Set up the controller and let each host of ``grants`` join, with the units that it may run."""
    controller = lab[CONTROLLER]
    tell(f"{CONTROLLER}: setting up the controller")
    controller.exec(
        [
            "hostmesh",
            "controller",
            "init",
            "--trust-domain",
            TRUST_DOMAIN,
            "--address",
            controller.ipv4,
            "--vip-range",
            "198.19.0.0/16",
            "--vip-range",
            "2001:2:0:19::/112",
        ]
    ).must()
    controller.systemctl("enable", "--now", "hostmesh-controller.service")
    for name, units in grants.items():
        tell(f"{name}: joining")
        flags = [flag for unit in units for flag in ("--unit", unit)]
        token = controller.exec(["hostmesh", "controller", "token", name, *flags]).must().stdout.strip()
        lab[name].exec(["hostmesh", "join", token]).must()


def _mesh(the_world: World, host: Host, units: Sequence[str], tell: Tell) -> None:
    for unit in units:
        tell(f"{host.name}: meshing {unit}")
        host.exec(["hostmesh", "enable", unit]).must()
        the_world.write_policy(host, unit, the_world.policy(unit))
        host.systemctl("restart", unit)


def _settled(the_world: World, tell: Tell) -> None:
    """Wait until the last unit's identity is there and both hosts know all services."""
    tell("waiting until every unit has its identity")

    def ready() -> bool:
        wanted = {"inventory", "orders", "web", "redis", "postgres"}
        for name, units in UNITS.items():
            host = the_world.lab[name]
            if not wanted <= set(the_world.services(host)) or not set(units) <= set(the_world.serials(host)):
                return False
        return set(CALLERS) <= set(the_world.serials(the_world.h1))

    started = time.monotonic()
    wait_until(ready, "both hosts know all services and have all identities", 30.0, 0.1)
    tell(f"meshed ({time.monotonic() - started:.1f} s)")
