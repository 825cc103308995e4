"""Servers of TLS with certificates of one authority, as units of h2, and curl that checks them from h1."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.lab.host import Result
from tests.lab.waiting import wait_until
from tests.mesh.authority import Authority
from tests.mesh.extra import DEBIANS, Extra, added
from tests.mesh.world import World

ROOT = "/opt/gates-ca.pem"


@dataclass(frozen=True)
class Gate(Extra):
    """A server; it says its name."""

    @property
    def unit_file(self) -> str:
        """Its unit, with the certificate of these names."""
        files = " ".join(f"/opt/{self.name}.{kind}" for kind in ("pem", "key"))
        command = f"{DEBIANS} /opt/{self.name}.py {self.port} {self.name} {files}"
        return f"[Service]\nType=notify\nDynamicUser=yes\nExecStart={command}\n"


def gate(name: str, port: int, protocol: str = "tls") -> Gate:
    """One of them."""
    return Gate(name, port, protocol, "tls_server.py")


@contextlib.contextmanager
def certified(world: World, names: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """Certificates: names of servers by the gate that has them."""
    authority = Authority("the authority of the gates")
    world.h1.write(ROOT, authority.certificate)
    try:
        for gate_name, servers in names.items():
            issued = authority.issue(*servers)
            world.h2.write(f"/opt/{gate_name}.pem", issued.certificate)
            world.h2.write(f"/opt/{gate_name}.key", issued.key)
        yield
    finally:
        world.h1.exec(["rm", "-f", ROOT]).must()
        world.h2.exec(["rm", "-f", *(f"/opt/{name}.{kind}" for name in names for kind in ("pem", "key"))]).must()


@contextlib.contextmanager
def all_added(world: World, *extras: Extra) -> Iterator[None]:
    """Several services at once, up, meshed and known to h1."""
    with contextlib.ExitStack() as stack:
        for extra in extras:
            programs = {extra.name: extra.program} if extra.program else {}
            unit = (extra.unit, extra.unit_file, extra.written())
            stack.enter_context(added(world, world.h2, *unit, **programs))

        def known() -> bool:
            services, serials = world.services(world.h1), world.serials(world.h2)
            there = all(extra.name in services and services[extra.name]["endpoints"] for extra in extras)
            return there and all(extra.unit in serials for extra in extras)

        wait_until(known, f"h1 knows {[extra.name for extra in extras]}", 20.0, 0.1)
        yield


def ask(world: World, called: Gate, server: str, *more: str) -> Result:
    """Ask this server at the called service, as shop; curl checks that it is the server."""
    url = f"https://{server}:{called.port}/"
    to = f"{server}:{called.port}:{called.name}:{called.port}"
    return world.shop("curl", "-sS", "--max-time", "10", "--cacert", ROOT, "--connect-to", to, *more, url)
