"""A certificate of its own for the world's PostgreSQL, for the length of a ``with``, and psql that checks it."""

import contextlib
from collections.abc import Iterator

from tests.lab.host import Host, Result
from tests.mesh.authority import Authority
from tests.mesh.world import World

FOLDER = "/var/lib/postgresql/secure"
ROOT = "/opt/postgres-ca.pem"
NAMES = ("ssl_cert_file", "ssl_key_file")


def sql(host: Host, text: str) -> str:
    """By the server's own administrator."""
    return host.exec(["runuser", "-u", "postgres", "--", "psql", "-qAtc", text]).must().stdout.strip()


@contextlib.contextmanager
def secured(world: World) -> Iterator[None]:
    """`ssl` is on in Debian; its certificate is one that a client can check from now on."""
    authority, h2 = Authority("the authority of postgres"), world.h2
    own = authority.issue("postgres")
    try:
        h2.write(f"{FOLDER}/server.pem", own.certificate, owner="postgres", group="postgres")
        h2.write(f"{FOLDER}/server.key", own.key, mode=0o600, owner="postgres", group="postgres")
        world.h1.write(ROOT, authority.certificate)
        for name, file in zip(NAMES, ("server.pem", "server.key"), strict=True):
            sql(h2, f"alter system set {name} = '{FOLDER}/{file}'")
        sql(h2, "select pg_reload_conf()")
        yield
    finally:
        for name in NAMES:
            sql(h2, f"alter system reset {name}")
        sql(h2, "select pg_reload_conf()")
        h2.exec(["rm", "-rf", FOLDER]).must()
        world.h1.exec(["rm", "-f", ROOT]).must()


def psql(world: World, mode: str, text: str, root: str = ROOT) -> Result:
    """As shop: `sslmode` and a statement."""
    target = f"host=postgres user=shop dbname=shop sslmode={mode} sslrootcert={root} connect_timeout=10"
    return world.shop("env", "PGPASSWORD=shop", "psql", target, "-Atc", text)
