"""Debian's OpenSSH as a unit of h2, and what is asked of it from h1: a server that speaks first."""

import contextlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.host import Result
from tests.mesh.extra import Extra, Served
from tests.mesh.world import World

FOLDER = "/opt/door"
UNMESHED_PORT = 2223
BEGUN = 25
CONFIG = f"""HostKey {FOLDER}/host_key
AuthorizedKeysFile {FOLDER}/client_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
"""
UNIT = """[Service]
Type=notify
ExecStart=/usr/sbin/sshd -D -f /opt/door/config -p {port}
RuntimeDirectory=sshd
"""
# From the connection's beginning to the server's first byte, so many times.
BANNER = """
import json, socket, sys, time
seconds = []
for _ in range(int(sys.argv[3])):
    begun = time.monotonic()
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as connection:
        assert connection.recv(4) == b"SSH-"
        seconds.append(time.monotonic() - begun)
print(json.dumps(seconds))
"""


@dataclass(frozen=True)
class Door(Extra):
    """Its unit runs as root: sshd logs people in."""

    @property
    def unit_file(self) -> str:
        """Debian's own `ssh.service`, in short, on another port."""
        return UNIT.format(port=self.port)


@contextlib.contextmanager
def keys(world: World) -> Iterator[None]:
    """Keys of both sides and the server's settings; gone after the ``with``."""
    h1, h2 = world.h1, world.h2
    try:
        for host, name in ((h2, "host_key"), (h1, "client_key")):
            host.exec(["mkdir", "-p", FOLDER]).must()
            host.exec(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{FOLDER}/{name}"]).must()
        h2.write(f"{FOLDER}/client_key.pub", h1.read(f"{FOLDER}/client_key.pub"))
        h1.write(f"{FOLDER}/known_hosts", "* " + h2.read(f"{FOLDER}/host_key.pub"))
        h2.write(f"{FOLDER}/config", CONFIG)
        yield
    finally:
        for host in (h1, h2):
            host.exec(["rm", "-rf", FOLDER]).must()


def ssh(door: Served, command: str, sent: str = "true") -> Result:
    """Log in as shop, with the host's key checked, and run a command there; it reads what `sent` writes here."""
    known, checked = f"-oUserKnownHostsFile={FOLDER}/known_hosts", "-oStrictHostKeyChecking=yes -oBatchMode=yes"
    client = f"ssh -i {FOLDER}/client_key {known} {checked} -p {door.extra.port} root@{door.extra.name}"
    return door.world.shop("sh", "-c", f"{sent} | {client} '{command}'")


@dataclass(frozen=True)
class Waited:
    """For the server's first byte, in seconds: the shortest and the median of many."""

    shortest: float
    median: float


def banner(door: Served) -> tuple[Waited, Waited]:
    """How long a client waits for the server's first byte: through the mesh, and for another sshd past it."""
    w = door.world
    command = ["/usr/sbin/sshd", "-D", "-f", f"{FOLDER}/config", "-p", str(UNMESHED_PORT)]
    with w.h2.unit(command, properties=["Type=notify", "RuntimeDirectory=sshd-beside"]):
        ask = ("python3", "-c", BANNER)
        direct = _waited(w.h1.exec([*ask, w.h2.ipv4, str(UNMESHED_PORT), str(BEGUN)]))
    return _waited(w.shop(*ask, door.extra.name, str(door.extra.port), str(BEGUN))), direct


def _waited(said: Result) -> Waited:
    seconds: list[float] = json.loads(said.must().stdout)
    return Waited(min(seconds), statistics.median(seconds))
