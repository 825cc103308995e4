"""Turns a lab into the two hosts of the bench: hostmesh as users run it, two like applications, `reno` for all.

h1 is the callers' host, h2 the services' and the controller's. Loads run on h1 (h2 for same-host calls), for hostmesh
as meshed units.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench.processes import Unit
from tests.lab.host import Host
from tests.lab.install import hostmesh_layer
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until
from tests.mesh.world import World, enrol

PEER_FILES = Path(__file__).parent / "peers"
APP_PORT, MESHED_PORT = 8000, 8001
BODY = "x" * 100
BULK_BYTES = 1 << 30
CALLER, LOCAL_CALLER, SERVICE = "bench-load", "bench-local", "bench"
URL = f"http://{SERVICE}:{MESHED_PORT}"
MEMBERS = "member@*.service"  # the many units that only memory is measured with
CONGESTION_CONTROL = "reno"
SCRAPER = """
[Unit]
Description=asks for the metrics as a Prometheus would, three times as often
[Service]
ExecStart=/bin/sh -c 'while curl -sSf -o /dev/null http://127.0.0.1:15020/metrics; do sleep 5; done'
"""

Tell = Callable[[str], None]


def policy(inbound: str = "", traffic: str = 'timeout = "600s"\n', observe: str = "trace = 0.01\n") -> str:
    """The service's, with what else is to stand in its tables."""
    return f"""
[service]
name = "{SERVICE}"
[service.ports]
{MESHED_PORT} = "http"
[[inbound.allow]]
from = ["{CALLER}", "{LOCAL_CALLER}"]
methods = ["GET"]
paths = ["/*"]
{inbound}
[traffic]
retries = {{ attempts = 3, on = ["5xx", "connect-failure"] }}
{traffic}
[observe]
{observe}
"""


def caller_policy(observe: str = "trace = 0.01\n") -> str:
    """Of both callers: they serve nothing."""
    return f"[observe]\n{observe}"


POLICY = policy()


class NotComparableError(Exception):
    """Something is not the same for all contenders."""


@dataclass(frozen=True)
class Testbed:
    """The two hosts, and what the bench does with them."""

    world: World

    @property
    def h1(self) -> Host:
        """The callers' host."""
        return self.world.h1

    @property
    def h2(self) -> Host:
        """The services' host."""
        return self.world.h2

    def hosts(self) -> tuple[Host, Host]:
        """Both."""
        return self.h1, self.h2

    def start(self, host: Host, name: str, command: str, files: dict[str, str] | None = None) -> Unit:
        """Run a program as the service ``name`` on a host, with files written first."""
        for path, text in (files or {}).items():
            host.write(path, text)
        host.write(f"/etc/systemd/system/{name}.service", f"[Service]\nExecStart={command}\nLimitNOFILE=65536\n")
        host.systemctl("daemon-reload")
        host.systemctl("start", f"{name}.service")
        return Unit.of(host, f"{name}.service")

    def run(self, argv: Sequence[str], *, host: Host, unit: str | None, timeout: float) -> str:
        """What a command says that runs on a host, as a meshed unit where one is named; it must succeed."""
        if unit:
            return self.world.as_unit(unit, argv, host=host, timeout=timeout).must().stdout
        return host.exec(argv, timeout=timeout).must().stdout

    def wait_answered(self) -> None:
        """Wait until the meshed application answers both callers."""
        ask = ["curl", "-sS", "-o", "/dev/null", "--max-time", "5", "--fail", f"{URL}/"]
        for host, unit in ((self.h1, CALLER), (self.h2, LOCAL_CALLER)):
            wait_until(lambda h=host, u=unit: self.world.as_unit(u, ask, host=h).ok, f"{unit} is answered", 20.0, 0.1)

    def check_congestion_control(self) -> None:
        """NotComparableError where a connection on one of the hosts is paced by another algorithm."""
        for host in self.hosts():
            said = host.exec(["ss", "-tinH", "state", "established"]).must().stdout
            others = [line for line in said.splitlines()[1::2] if f" {CONGESTION_CONTROL} " not in f" {line.strip()} "]
            if others:
                raise NotComparableError(
                    f"{host.name}: {len(others)} connections without {CONGESTION_CONTROL}: {others[0]}"
                )


def peer_file(name: str, /, **words: object) -> str:
    """A file of bench/peers with its words filled in."""
    return Template((PEER_FILES / name).read_text()).substitute(words)


@contextlib.contextmanager
def two_hosts(tell: Tell, layers: Sequence[Path] = (), hostmesh: Path | None = None) -> Iterator[Testbed]:
    """The hosts, up and meshed; all gone after the ``with``. ``hostmesh``: a layer with another checkout's."""
    tell("booting two hosts with hostmesh")
    with Lab(("h1", "h2"), layers=[hostmesh or hostmesh_layer(), *layers]) as lab:
        bed = Testbed(World(lab))
        for host in bed.hosts():  # before anything of hostmesh listens: accepted sockets inherit it
            host.exec(["sysctl", "-qw", f"net.ipv4.tcp_congestion_control={CONGESTION_CONTROL}"]).must()
            host.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")  # oha has a resolver of its own, which wants one
        application(bed, "bench-app", APP_PORT)
        application(bed, "bench-meshed", MESHED_PORT)
        grants = {"h1": (f"{CALLER}.service",), "h2": ("bench-meshed.service", f"{LOCAL_CALLER}.service", MEMBERS)}
        enrol(lab, grants, tell)
        _mesh(bed)
        yield bed


def application(bed: Testbed, name: str, port: int) -> None:
    """nginx on h2, not meshed yet."""
    bed.h2.exec(["mkdir", "-p", "/var/lib/bench"]).must()
    bed.h2.exec(["truncate", f"--size={BULK_BYTES}", "/var/lib/bench/bulk"]).must()
    files = {f"/etc/{name}.conf": peer_file("application.conf", name=name, port=port, body=BODY)}
    bed.start(bed.h2, name, f"/usr/sbin/nginx -c /etc/{name}.conf", files)


def _mesh(bed: Testbed) -> None:
    world = bed.world
    bed.h2.exec(["hostmesh", "enable", "bench-meshed.service"]).must()
    world.write_policy(bed.h2, "bench-meshed.service", POLICY)
    bed.h2.systemctl("restart", "bench-meshed.service")
    world.write_policy(bed.h1, f"{CALLER}.service", caller_policy())
    world.write_policy(bed.h2, f"{LOCAL_CALLER}.service", caller_policy())
    bed.wait_answered()
    for host in bed.hosts():
        host.write("/etc/systemd/system/bench-scraper.service", SCRAPER)
        host.systemctl("daemon-reload")
        host.systemctl("start", "bench-scraper.service")
