"""Turns a person's `hostmesh controller …` into rows and files, as root, on the controller's own host.

No network and no running controller is needed; a running one takes over what was written within a fifth of a second.
"""

import ipaddress
import os
import pwd
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hostmesh.apply.files import create
from hostmesh.controller import ca
from hostmesh.controller.config import PATH, USER, Config, dump, load, read
from hostmesh.controller.store import Store
from hostmesh.errors import HostmeshError
from hostmesh.identity import revocation
from hostmesh.identity.attest import check_grant
from hostmesh.identity.revocation import Kind
from hostmesh.identity.rotation import HOST_GRACE
from hostmesh.identity.svid import check_host_name
from hostmesh.names import SpiffeId, dns_names_of
from hostmesh.wire.controller import JoinToken, write_token
from hostmesh.wire.snapshot import Revoked

TOKEN_LIFE = timedelta(hours=1)


class AdminError(HostmeshError):
    """Something that a person asked of the controller's files and cannot have."""


@dataclass(frozen=True, slots=True)
class HostRow:
    """An enrolled host, for a table: its grants, the services that it serves now, whether it was heard of lately."""

    name: str
    grants: tuple[str, ...]
    services: tuple[str, ...]
    silent: bool


def init(config: Config, path: Path = PATH, user: str | None = USER) -> list[Path]:
    """Makes the CA, the store and the configuration, all owned by ``user`` (None: by the caller). What was written.

    All is made aside and put in place at the end, the configuration last: when it is there, all is there.
    """
    owner = _owner(user)
    read(dump(config), str(path))
    if path.exists():
        raise AdminError(f"{path} is already there: this host has a controller", "hostmesh controller token HOST")
    if (config.state / "ca").exists() or (config.state / "controller.db").exists():
        raise AdminError(
            f"{config.state} holds a CA or a store, but {path} is missing",
            "restore the file from its backup; or remove the folder, and every host must join again",
        )
    staging = config.state.with_name(config.state.name + ".new")
    if staging.exists():  # an init that was cut short; nothing has used it
        shutil.rmtree(staging)
    staging.mkdir(parents=True, mode=0o700)
    first = int(ca.clock().timestamp() * 1000)
    with closing(Store(staging / "controller.db", create_at=first)) as store:
        ca.make(staging, store, config.trust_domain)
    (staging / "controller.db").chmod(0o600)
    for item in (staging, *staging.rglob("*")):
        if owner:
            os.chown(item, *owner)
    staging.replace(config.state)  # takes the place of an empty folder, too
    path.parent.mkdir(parents=True, exist_ok=True)
    return [config.state, *sorted(config.state.rglob("*")), create(path, dump(config).encode(), 0o644)]


def make_token(host: str, units: tuple[str, ...], *, ttl: timedelta = TOKEN_LIFE, config_path: Path = PATH) -> str:
    """A join token: opens once, within ``ttl``, for this host, which may then run these units. It is kept nowhere."""
    config = load(config_path)
    check_host_name(host, config.trust_domain)
    grants = tuple(check_grant(unit) for unit in units)
    if ttl <= timedelta(0):
        raise AdminError("a token must live longer than 0 seconds")
    secret, now = secrets.token_urlsafe(32), ca.seconds()
    with _open(config) as store:
        taken_back = revocation.standing(
            store.revoked(now), SpiffeId.of_host(config.trust_domain, host), dns_names_of(host)
        )
        if taken_back:
            raise AdminError(f"{host} is revoked", f"hostmesh controller unrevoke host {host}")
        root = ca.load(config.state, store, config.trust_domain).active.root
        store.add_token(secret, host, grants, now + int(ttl.total_seconds()), now)
    return write_token(
        JoinToken(
            secret=secret,
            host=host,
            controllers=config.endpoints(config.enrolment_port),
            root=ca.base64_der(root),
        )
    )


def must_be_reachable(host: str, own: str, *, config_path: Path = PATH) -> None:
    """Raises AdminError where ``host`` is another than the controller's ``own`` and only loopback is advertised."""
    config = load(config_path)
    if host != own and all(ipaddress.ip_address(address).is_loopback for address in config.advertise):
        raise AdminError(
            f"{host} could not reach this controller, which advertises {', '.join(config.advertise)} alone",
            f'in {config_path} set listen = ["::"] and advertise to addresses of this host, then systemctl restart '
            "hostmesh-controller.service",
        )


def grant(host: str, units: tuple[str, ...], *, config_path: Path = PATH) -> tuple[str, ...]:
    """Lets an enrolled host run more units. All its grants now."""
    grants = tuple(check_grant(unit) for unit in units)
    with _open(load(config_path)) as store:
        store.grant(host, grants)
        return store.grants(host)


def remove(host: str, *, config_path: Path = PATH) -> None:
    """Takes a host out of the mesh: its endpoints are withdrawn, and all that was signed for it counts for nothing."""
    config, now = load(config_path), ca.clock()
    one = revocation.removal(host, now)
    with _open(config) as store:
        if not store.remove_host(host, one, _ends(config, one, now)):
            raise AdminError(f"host {host} is not enrolled", "hostmesh controller hosts lists those that are")


def release(service: str, *, config_path: Path = PATH) -> None:
    """Lets another unit claim a service's name; its VIP stays."""
    with _open(load(config_path)) as store:
        if not store.release_service(service):
            raise AdminError(f"nobody owns the service name {service}")


def revoke(kind: str, name: str, reason: str = "", *, config_path: Path = PATH) -> Revoked:
    """Takes back what a host, a unit or a serial stands for, on every host of the mesh. Stands until `unrevoke`."""
    config = load(config_path)
    one = revocation.entry(Kind(kind), name, config.trust_domain, reason)
    with _open(config) as store:
        store.revoke(one, _ends(config, one, ca.clock()), ca.seconds(), revocation.MOST)
    return one


def unrevoke(kind: str, name: str, *, config_path: Path = PATH) -> Revoked:
    """Takes an entry away: what it named counts again, where its time is not over."""
    config, now = load(config_path), ca.clock()
    one = revocation.entry(Kind(kind), name, config.trust_domain)
    with _open(config) as store:
        if not any((each.kind, each.name) == (one.kind, one.name) for each in store.revoked(ca.seconds())):
            raise AdminError(f"{one.kind} {one.name} is not revoked", "hostmesh controller revoked lists what is")
        if one.kind == Kind.HOST and one.name not in {host.lower() for host in store.hosts()}:
            one = revocation.removal(one.name, now)  # it was removed as well: only new certificates count
            store.revoke(one, _ends(config, one, now), int(now.timestamp()), revocation.MOST)
        else:
            store.unrevoke(one.kind, one.name)
    return one


def revoked(*, config_path: Path = PATH) -> list[Revoked]:
    """What is revoked."""
    with _open(load(config_path)) as store:
        return store.revoked(ca.seconds())


def _ends(config: Config, one: Revoked, now: datetime) -> int | None:
    ends = revocation.ends(one, now, (config.unit_life, config.host_life + HOST_GRACE))
    return int(ends.timestamp()) if ends else None


def hosts(*, config_path: Path = PATH) -> list[HostRow]:
    """All enrolled hosts."""
    config = load(config_path)
    with _open(config) as store:
        catalog = store.load(config.trust_domain, config.vip_ranges)
        serving = {
            name: tuple(sorted({load.service for load in host.workloads if load.ready}))
            for name, host in catalog.hosts.items()
        }
        return [
            HostRow(name, grants, serving.get(name, ()), name in catalog.silent)
            for name, grants in store.hosts().items()
        ]


@contextmanager
def _open(config: Config) -> Iterator[Store]:
    """The store, opened by root or by the controller's user. SQLite gives its side files to the database's owner."""
    with closing(Store(config.state / "controller.db")) as store:
        yield store


def _owner(user: str | None) -> tuple[int, int] | None:
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise AdminError(f"there is no user {user}", "systemd-sysusers makes it: sysusers.d/hostmesh.conf") from error
    return entry.pw_uid, entry.pw_gid
