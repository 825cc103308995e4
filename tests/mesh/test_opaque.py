"""Protocols that hostmesh does not read, through two real hosts: Debian's OpenSSH, redis and PostgreSQL."""

import hashlib
from collections.abc import Iterator

import pytest

from tests.mesh.door import Door, banner, keys, ssh
from tests.mesh.extra import Served, served
from tests.mesh.secure_postgres import psql, secured
from tests.mesh.world import World

pytestmark = pytest.mark.lab
# Through the mesh the first byte takes a call's time more. Whoever waits for the client first waits far longer.
A_CALL = 0.02
LARGE = 8 << 20
ZEROS = hashlib.sha256(bytes(LARGE)).hexdigest()
WHOSE = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"


@pytest.fixture(scope="module")
def door(mesh: World) -> Iterator[Served]:
    with keys(mesh), served(mesh, Door("door", 2222, "tcp")) as made:
        yield made


def test_ssh(door: Served) -> None:
    assert ssh(door, "echo hello; echo trouble >&2; exit 3").exit == 3
    said = ssh(door, "hostname").must()
    assert said.stdout == "h2\n"
    # Much in both directions at once.
    zeros = f"head -c {LARGE} /dev/zero"
    assert ssh(door, "tee /dev/stderr | sha256sum", zeros).must().stdout.split()[0] == ZEROS


def test_who_speaks_first_is_not_held_back(door: Served) -> None:
    meshed, direct = banner(door)
    print(f"first byte of sshd: meshed {meshed}, direct {direct}")
    assert meshed.shortest < direct.shortest + A_CALL
    assert meshed.median < direct.median + A_CALL


def test_redis(mesh: World) -> None:
    def redis(*command: str) -> str:
        return mesh.shop("redis-cli", "-h", "redis", *command).must().stdout.strip()

    # Silent for a second, then an answer.
    assert redis("blpop", "nothing-there", "1") == ""
    said = mesh.shop("sh", "-c", f"head -c {LARGE} /dev/zero | redis-cli -h redis -x set large").must().stdout
    assert said.strip() == "OK"
    assert redis("strlen", "large") == str(LARGE)
    assert redis("del", "large") == "1"
    # What is published reaches a subscriber, who says nothing meanwhile.
    listen = [
        "hostmesh",
        "run",
        "--unit",
        "shop",
        "--",
        "timeout",
        "3",
        "redis-cli",
        "-h",
        "redis",
        "subscribe",
        "news",
    ]
    with mesh.h1.popen(listen) as subscriber:
        assert subscriber.stdout is not None
        heard = [subscriber.stdout.readline().strip() for _ in range(3)]
        assert heard == ["subscribe", "news", "1"]
        assert redis("publish", "news", "hello") == "1"
        assert [subscriber.stdout.readline().strip() for _ in range(3)] == ["message", "news", "hello"]
        subscriber.communicate(timeout=10)


def test_postgres_with_its_own_tls(mesh: World) -> None:
    """The client asks for TLS, the server says a byte, then TLS follows, checked by the client end to end."""
    with secured(mesh):
        assert psql(mesh, "verify-full", WHOSE).must().stdout.strip() == "t|TLSv1.3"
        assert psql(mesh, "disable", WHOSE).must().stdout.strip() == "f|"
        mesh.h1.write("/opt/other.pem", mesh.h2.read("/etc/ssl/certs/ssl-cert-snakeoil.pem"))
        other = psql(mesh, "verify-full", WHOSE, root="/opt/other.pem")
        mesh.h1.exec(["rm", "/opt/other.pem"]).must()
        assert other.exit and "certificate verify failed" in other.stderr
