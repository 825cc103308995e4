"""Adds a service to h2 of the world, called by shop from h1, for the length of a ``with``."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import Result
from tests.lab.waiting import wait_until
from tests.mesh.world import World

HERE = Path(__file__).parent
OURS = "/opt/hostmesh/bin/python3"  # has grpcio
DEBIANS = "/usr/bin/python3"
UNIT = "[Service]\nExecStart={command}\nDynamicUser=yes\nType={kind}\n"
POLICY = '[service]\nname = "{name}"\n[service.ports]\n{port} = "{protocol}"\n[[inbound.allow]]\nfrom = ["shop"]\n'


@dataclass(frozen=True)
class Extra:
    """What is served, on which port, in which protocol.

    program: a Python program of this folder, which is given the port and says READY=1 to systemd; or else command.
    """

    name: str
    port: int
    protocol: str
    program: str = ""
    command: str = ""
    python: str = DEBIANS
    policy: str = ""

    @property
    def unit(self) -> str:
        """Its unit."""
        return f"{self.name}.service"

    @property
    def unit_file(self) -> str:
        """The file of its unit."""
        if self.command:
            return UNIT.format(command=self.command, kind="simple")
        return UNIT.format(command=f"{self.python} /opt/{self.name}.py {self.port}", kind="notify")

    def written(self, more: str = "") -> str:
        """Its policy, and more."""
        text = POLICY.format(name=self.name, port=self.port, protocol=self.protocol)
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
def served(world: World, extra: Extra) -> Iterator[Served]:
    """The service, up, meshed and known to h1; gone after the ``with``."""
    h2, unit = world.h2, extra.unit
    h2.exec(["hostmesh", "controller", "grant", "h2", unit]).must()
    if extra.program:
        h2.write(f"/opt/{extra.name}.py", (HERE / extra.program).read_text())
    h2.write(f"/etc/systemd/system/{unit}", extra.unit_file)
    h2.systemctl("daemon-reload")
    h2.systemctl("start", unit)
    h2.exec(["hostmesh", "enable", unit]).must()
    world.write_policy(h2, unit, extra.written())
    h2.systemctl("restart", unit)

    def known() -> bool:
        services = world.services(world.h1)
        return extra.name in services and bool(services[extra.name]["endpoints"]) and unit in world.serials(h2)

    try:
        with world.changed_policy(world.h1, "shop.service", f'[outbound]\nallow = ["{extra.name}"]\n'):
            wait_until(known, f"h1 knows {extra.name}", 20.0, 0.1)
            yield Served(world, extra)
    finally:
        h2.exec(["hostmesh", "disable", unit]).must()
        h2.systemctl("stop", unit)
        gone = f"/etc/systemd/system/{unit}", f"/opt/{extra.name}.py", f"/etc/hostmesh/policies/{unit}.toml"
        h2.exec(["rm", "-f", *gone]).must()
        h2.systemctl("daemon-reload")
