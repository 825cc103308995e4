"""Adds units to the world, for the length of a ``with``: any, or a service on h2 that shop calls from h1."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import Host, Result
from tests.lab.waiting import wait_until
from tests.mesh.world import POLICIES, World

HERE = Path(__file__).parent
OURS = "/opt/hostmesh/bin/python3"  # has grpcio
DEBIANS = "/usr/bin/python3"
UNIT = "[Service]\nExecStart={command}\nDynamicUser=yes\nType={kind}\n"
POLICY = '[service]\nname = "{name}"\n[service.ports]\n{ports}[[inbound.allow]]\nfrom = ["shop"]\n'


@dataclass(frozen=True)
class Extra:
    """What is served, on which port, in which protocol.

    program: a Python program of this folder, which is given the ports and says READY=1 to systemd; or else command.
    beside: further ports and their protocols.
    """

    name: str
    port: int
    protocol: str
    program: str = ""
    command: str = ""
    python: str = DEBIANS
    policy: str = ""
    beside: tuple[tuple[int, str], ...] = ()

    @property
    def unit(self) -> str:
        """Its unit."""
        return f"{self.name}.service"

    @property
    def ports(self) -> tuple[tuple[int, str], ...]:
        """All ports and what is spoken there."""
        return (self.port, self.protocol), *self.beside

    @property
    def unit_file(self) -> str:
        """The file of its unit."""
        if self.command:
            return UNIT.format(command=self.command, kind="simple")
        ports = " ".join(str(port) for port, _ in self.ports)
        return UNIT.format(command=f"{self.python} /opt/{self.name}.py {ports}", kind="notify")

    def written(self, more: str = "") -> str:
        """Its policy, and more."""
        ports = "".join(f'{port} = "{protocol}"\n' for port, protocol in self.ports)
        text = POLICY.format(name=self.name, ports=ports)
        return f"{text}{self.policy}{more}"


@dataclass(frozen=True)
class Served:
    """The service, and what one does with it."""

    world: World
    extra: Extra

    def client(self, program: str, *arguments: str, timeout: float = 60.0) -> Result:
        """Run a program of this folder on h1, as shop."""
        text = (HERE / program).read_text()
        return self.world.shop(self.extra.python, "-c", text, *arguments, timeout=timeout)


@contextlib.contextmanager
def added(world: World, host: Host, unit: str, unit_file: str, policy: str, **programs: str) -> Iterator[None]:
    """A unit of the test's own, up and meshed on a host of the world; gone after the ``with``.

    programs: files of this folder by the name that they have in ``/opt``, as ``NAME.py``.
    """
    place, copies = f"/etc/systemd/system/{unit}", {f"/opt/{name}.py": source for name, source in programs.items()}
    world.h2.exec(["hostmesh", "controller", "grant", host.name, unit]).must()
    try:
        for path, source in copies.items():
            host.write(path, (HERE / source).read_text())
        host.write(place, unit_file)
        host.systemctl("daemon-reload")
        host.systemctl("start", unit)
        host.exec(["hostmesh", "enable", unit]).must()
        world.write_policy(host, unit, policy)
        host.systemctl("restart", unit)
        yield
    finally:
        host.exec(["hostmesh", "disable", "--now", unit]).must()
        host.systemctl("stop", unit)
        host.exec(["rm", "-f", place, f"{POLICIES}/{unit}.toml.disabled", *copies]).must()
        host.systemctl("daemon-reload")


@contextlib.contextmanager
def served(world: World, extra: Extra) -> Iterator[Served]:
    """The service, up, meshed and known to h1; gone after the ``with``."""
    h2, unit = world.h2, extra.unit
    programs = {extra.name: extra.program} if extra.program else {}
    allowed = world.policy("shop.service").replace("allow = [", f'allow = ["{extra.name}", ')

    def known() -> bool:
        services = world.services(world.h1)
        return extra.name in services and bool(services[extra.name]["endpoints"]) and unit in world.serials(h2)

    with (
        added(world, h2, unit, extra.unit_file, extra.written(), **programs),
        world.changed_policy(world.h1, "shop.service", allowed),
    ):
        wait_until(known, f"h1 knows {extra.name}", 20.0, 0.1)
        yield Served(world, extra)
